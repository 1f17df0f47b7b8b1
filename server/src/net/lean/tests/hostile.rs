//! Floods, and frames at random: nothing panics, nothing grows beyond its bound.

use super::*;

/// Says the same until it is too much; how often that was.
fn until_calm(server: &mut Server, times_max: usize, mut bytes: impl FnMut(usize) -> Vec<u8>) -> Option<usize> {
    (0..times_max).find(|number| {
        let said = server.says(&bytes(*number));
        server.out();
        match said {
            Ok(_) => false,
            Err(fault) => {
                assert_eq!(fault.reason, Reason::ENHANCE_YOUR_CALM, "{}", fault.words);
                true
            }
        }
    })
}

#[test]
fn empty_frames() {
    let mut server = Server::new();
    server.says(&post(1)).expect("good");
    let often = until_calm(&mut server, 1 << 20, |_| data(1, b"", false));
    assert_eq!(often, Some(limits::EMPTY_FRAMES_MAX));
    // Data between them makes them harmless.
    let mut server = Server::new();
    server.says(&post(1)).expect("good");
    let often = until_calm(&mut server, 4 * limits::EMPTY_FRAMES_MAX, |number| {
        data(1, if number % 1000 == 0 { b"x" } else { b"" }, false)
    });
    assert_eq!(often, None);
}

#[test]
fn headers_without_end() {
    for piece in [0, 1, 16_384] {
        let mut server = Server::new();
        server.says(&frame(frame::HEADERS, 0, 1, &block(&POST))).expect("good");
        let often = until_calm(&mut server, 1000, |_| frame(frame::CONTINUATION, 0, 1, &vec![0; piece]));
        assert!(often.is_some_and(|often| often <= limits::HEADER_BLOCK_FRAMES_MAX), "{piece}: {often:?}");
    }
}

#[test]
fn settings_without_end() {
    let mut server = Server::new();
    let often = until_calm(&mut server, 1 << 20, |_| setting(frame::SETTINGS_INITIAL_WINDOW_SIZE, 65_535));
    assert_eq!(often, Some(limits::SETTINGS_FRAMES_MAX - 1));
}

#[test]
fn resets_in_one_second_and_over_many() {
    let mut stream = 1;
    let mut cancelled = move || {
        stream += 2;
        [post(stream), frame(frame::RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
    };
    let mut server = Server::new();
    assert_eq!(until_calm(&mut server, 1 << 20, |_| cancelled()), Some(limits::CANCELLED_STREAMS_MAX));
    let mut server = Server::new();
    for second in 0..5 {
        server.second = second;
        assert_eq!(until_calm(&mut server, limits::CANCELLED_STREAMS_MAX, |_| cancelled()), None);
        assert!(server.core.streams.is_empty());
    }
}

#[test]
fn streams_that_the_server_has_reset_are_forgotten_in_time() {
    let mut server = Server::new();
    let bad = frame(frame::HEADERS, frame::END_HEADERS, 0, &block(&[("a", "b")]));
    for number in 0..2 * limits::ENDED_STREAMS_REMEMBERED_MAX as u32 {
        let mut bad = bad.clone();
        bad[5..9].copy_from_slice(&(2 * number + 1).to_be_bytes());
        assert_eq!(server.says(&bad), Ok(vec![]));
        server.out();
    }
    assert_eq!(server.core.remembered(), limits::ENDED_STREAMS_REMEMBERED_MAX);
    assert!(server.core.streams.is_empty());
}

/// Frames that are mostly good, and some that are not.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let stream = prop_oneof![4 => (0_u32..20).prop_map(|number| 2 * number + 1), 1 => 0_u32..50, 1 => any::<u32>()];
    let kind = prop_oneof![8 => 0_u8..10, 1 => any::<u8>()];
    let flags = prop_oneof![4 => Just(0_u8), 4 => Just(4), 4 => Just(5), 2 => Just(1), 2 => any::<u8>()];
    let payload = prop_oneof![
        4 => Just(block(&POST)),
        2 => prop::collection::vec(any::<u8>(), 0..40),
        2 => prop::collection::vec(any::<u8>(), 4..=4),
        2 => prop::collection::vec(any::<u8>(), 8..=8),
        1 => (1_u16..7, prop_oneof![Just(0_u32), Just(16_384), Just(70_000), any::<u32>()])
            .prop_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat()),
        1 => prop::collection::vec(any::<u8>(), 16_384..=16_384),
    ];
    (kind, flags, stream, payload).prop_map(|(kind, flags, stream, payload)| frame(kind, flags, stream, &payload))
}

/// What the server does meanwhile with one of its streams.
#[derive(Clone, Debug)]
enum Deed {
    Message(usize),
    Head,
    Data(usize, bool),
    Trailers,
    Reset,
    Release,
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        (0_usize..200_000).prop_map(Deed::Message),
        Just(Deed::Head),
        (0_usize..100_000, any::<bool>()).prop_map(|(bytes, ends)| Deed::Data(bytes, ends)),
        Just(Deed::Trailers),
        Just(Deed::Reset),
        Just(Deed::Release),
    ]
}

fn run(said: &[Vec<u8>], deeds: &[(u32, Deed)], cut: usize) -> Result<(), Fault> {
    let mut server = Server::with_streams(10);
    let mut deeds = deeds.iter();
    for bytes in said {
        let mut received = 0;
        for piece in bytes.chunks(cut) {
            for seen in server.says(piece)? {
                if let Seen::Data(_, data, _) = seen {
                    received += data.len();
                }
            }
        }
        if let Some((stream, deed)) = deeds.next() {
            let (core, stream) = (&mut server.core, 2 * stream + 1);
            match deed {
                Deed::Message(bytes) => core.send_message(stream, vec![0; *bytes].into(), None),
                Deed::Head => core.send_head(stream, &block(&[(":status", "200")]), false),
                Deed::Data(bytes, ends) => core.send_data(stream, vec![0; *bytes].into(), *ends),
                Deed::Trailers => core.send_trailers(stream, block(&[("grpc-status", "0")])),
                Deed::Reset => drop(core.reset(stream, Reason::CANCEL)),
                Deed::Release => core.release(stream, received),
            }
        }
        // What is written is whole frames, none larger than allowed.
        for (head, _) in server.out() {
            assert!(head.length <= frame::PAYLOAD_BYTES_LIMIT);
        }
        let core = &server.core;
        assert!(core.streams.len() <= 10 && core.remembered() <= limits::ENDED_STREAMS_REMEMBERED_MAX);
        assert!(core.send_window <= frame::WINDOW_MAX && core.send_window >= 0);
        assert!(core.line.iter().all(|stream| core.line.iter().filter(|other| *other == stream).count() == 1));
        assert!(server.read.len() < HEAD_BYTES + frame::PAYLOAD_BYTES_MAX);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn random_frames_do_no_harm(
        said in prop::collection::vec(frames(), 0..60),
        deeds in prop::collection::vec((0_u32..20, deed()), 0..60),
        cut in 1_usize..20_000,
    ) {
        // Whether it ends with a fault does not matter: that it ends, and how large it gets, does.
        let _ = run(&said, &deeds, cut);
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let mut server = Server::new();
        let _ = server.says(&bytes);
    }

    #[test]
    fn random_header_blocks_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
        let mut server = Server::new();
        let _ = server.says(&frame(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, 1, &bytes));
    }
}
