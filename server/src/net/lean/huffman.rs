//! The code that HPACK compresses strings with (RFC 7541, appendix B), decoded four bits a step. Nothing is compressed
//! here: answers are short and repeat.

/// Length of the code of each symbol, in bits; the last is the end of a string. The code is canonical: within a length
/// codes count up with the symbols, and each length begins where the one before ended.
#[rustfmt::skip] // A table reads by its rows.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7,
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    // The end of a string. It never occurs in one.
    30,
];

/// Inner nodes of a binary tree with 257 leaves.
const NODES: usize = 256;
/// In a tree: a leaf, and the symbol below it. Inner nodes are their own numbers; 0 is the root.
const LEAF: u16 = 0x8000;
const END: u16 = 256;

/// What four bits lead to.
#[derive(Copy, Clone)]
struct Step {
    /// The inner node reached.
    node: u8,
    /// What is written on the way, if `writes`. No code is shorter than five bits: it is never more than one.
    symbol: u8,
    writes: bool,
    /// The end of a string within a string, which is not allowed.
    fails: bool,
}

static STEPS: [[Step; 16]; NODES] = steps();
/// Nodes at which a string may end: after nothing, or after at most seven bits of the code of the end, which is all ones.
static ENDS: [bool; NODES] = ends();

/// Appends what `bytes` stand for. False if they stand for nothing.
pub(super) fn decode(bytes: &[u8], out: &mut Vec<u8>) -> bool {
    let mut node = 0;
    for byte in bytes {
        for bits in [byte >> 4, byte & 15] {
            let step = STEPS[node as usize][bits as usize];
            if step.writes {
                out.push(step.symbol);
            }
            if step.fails {
                return false;
            }
            node = step.node;
        }
    }
    ENDS[node as usize]
}

/// The children of each inner node.
const fn tree() -> [[u16; 2]; NODES] {
    let mut tree = [[0; 2]; NODES];
    let (mut nodes, mut code, mut length) = (1, 0_u32, 1);
    while length <= 30 {
        let mut symbol = 0;
        while symbol <= END {
            if LENGTHS[symbol as usize] == length {
                let (mut node, mut left) = (0, length);
                while left > 1 {
                    left -= 1;
                    let bit = (code >> left & 1) as usize;
                    if tree[node][bit] == 0 {
                        tree[node][bit] = nodes;
                        nodes += 1;
                    }
                    node = tree[node][bit] as usize;
                }
                tree[node][(code & 1) as usize] = LEAF | symbol;
                code += 1;
            }
            symbol += 1;
        }
        code <<= 1;
        length += 1;
    }
    tree
}

const fn steps() -> [[Step; 16]; NODES] {
    let tree = tree();
    let mut steps = [[Step { node: 0, symbol: 0, writes: false, fails: false }; 16]; NODES];
    let mut from = 0;
    while from < NODES {
        let mut bits = 0;
        while bits < 16 {
            let (mut step, mut node, mut left) = (steps[from][bits], from, 4);
            while left > 0 {
                left -= 1;
                let next = tree[node][bits >> left & 1];
                node = next as usize;
                if next & LEAF != 0 {
                    let symbol = next & !LEAF;
                    step.fails |= symbol == END;
                    (step.symbol, step.writes) = (symbol as u8, symbol != END);
                    node = 0;
                }
            }
            step.node = node as u8;
            steps[from][bits] = step;
            bits += 1;
        }
        from += 1;
    }
    steps
}

const fn ends() -> [bool; NODES] {
    let tree = tree();
    let mut ends = [false; NODES];
    let (mut node, mut depth) = (0, 0);
    while depth < 8 {
        ends[node] = true;
        node = tree[node][1] as usize;
        depth += 1;
    }
    ends
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Compresses, to have something to decode.
    pub(crate) fn encode(text: &[u8]) -> Vec<u8> {
        let code = |wanted: u8| {
            let (mut code, mut length) = (0_u32, 1);
            loop {
                for symbol in 0..=END {
                    if LENGTHS[usize::from(symbol)] == length {
                        if symbol == u16::from(wanted) {
                            return (code, length);
                        }
                        code += 1;
                    }
                }
                code <<= 1;
                length += 1;
            }
        };
        let mut bits: Vec<u8> = Vec::new();
        for byte in text {
            let (code, length) = code(*byte);
            bits.extend((0..length).rev().map(|place| (code >> place & 1) as u8));
        }
        while !bits.len().is_multiple_of(8) {
            bits.push(1);
        }
        bits.chunks(8).map(|byte| byte.iter().fold(0, |value, bit| value << 1 | bit)).collect()
    }

    fn decoded(bytes: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        decode(bytes, &mut out).then_some(out)
    }

    #[test]
    fn the_code_fills_the_tree() {
        let spaces: u64 = LENGTHS.iter().map(|length| 1 << (30 - length)).sum();
        assert_eq!(spaces, 1 << 30, "every sequence of bits means something");
    }

    #[test]
    fn every_symbol_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decoded(&encode(&all)).as_deref(), Some(&all[..]));
        for byte in all {
            assert_eq!(decoded(&encode(&[byte])).as_deref(), Some(&[byte][..]));
        }
    }

    /// RFC 7541, C.4.1 and C.6.1.
    #[test]
    fn the_code_is_that_of_the_standard() {
        let authority = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decoded(&authority).as_deref(), Some(&b"www.example.com"[..]));
        let date = [
            0xd0, 0x7a, 0xbe, 0x94, 0x10, 0x54, 0xd4, 0x44, 0xa8, 0x20, 0x05, 0x95, 0x04, 0x0b, 0x81, 0x66, 0xe0, 0x82,
            0xa6, 0x2d, 0x1b, 0xff,
        ];
        assert_eq!(decoded(&date).as_deref(), Some(&b"Mon, 21 Oct 2013 20:13:21 GMT"[..]));
    }

    #[test]
    fn bad_padding_and_an_end_within_are_refused() {
        assert_eq!(decoded(&[]).as_deref(), Some(&[][..]));
        // "0" is 00000: padding of zeros, of eight ones, and the end spelled out.
        assert_eq!(decoded(&[0b0000_0111]).as_deref(), Some(&b"0"[..]));
        assert_eq!(decoded(&[0b0000_0000]), None);
        assert_eq!(decoded(&[0b0000_0111, 0xff]), None);
        assert_eq!(decoded(&[0xff]), None);
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff]), None);
    }
}
