//! Where log lines go: a bounded queue and one thread "log" that writes to stderr, stdout and files, so that a slow disk
//! or a reader that does not read never holds up those who log. Lines that do not fit are counted and given up. Knows
//! nothing of what a line says.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};

use crate::config::{LogOutput, LogRotation};
use crate::limits::{LOG_LINES_WAITING_MAX, LOG_WAITING_BYTES_MAX};

/// The lines that wait. Shared by all who log and the thread that writes; held only to move a line.
///
/// Invariant: `written <= pushed`.
#[derive(Default)]
struct Waiting {
    lines: VecDeque<String>,
    bytes: usize,
    /// Lines that went into the queue, and lines that have been written, since the start.
    pushed: u64,
    written: u64,
    /// Lines given up since the start, and those of which no line has told yet.
    dropped: u64,
    untold: u64,
}

/// The queue's end for those who log. Cheap to clone.
#[derive(Clone, Default)]
pub struct Sink(Arc<Shared>);

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// There is something to write.
    filled: Condvar,
    /// Something has been written.
    emptied: Condvar,
}

impl Sink {
    /// Opens the outputs and starts the thread, which runs as long as the process.
    pub fn start(outputs: &[LogOutput], rotation: Option<&LogRotation>) -> io::Result<Self> {
        let mut outputs = open(outputs, rotation)?;
        let sink = Self::default();
        let shared = sink.0.clone();
        thread::Builder::new().name("log".into()).spawn(move || {
            loop {
                let (lines, dropped) = shared.take();
                let count = lines.len() as u64;
                write(&mut outputs, &lines, dropped);
                shared.waiting.lock().written += count;
                shared.emptied.notify_all();
            }
        })?;
        Ok(sink)
    }

    /// Adds a line, or counts it as given up.
    pub fn push(&self, line: String) {
        let mut waiting = self.0.waiting.lock();
        if waiting.lines.len() >= LOG_LINES_WAITING_MAX || waiting.bytes + line.len() > LOG_WAITING_BYTES_MAX {
            waiting.dropped += 1;
            waiting.untold += 1;
            return;
        }
        waiting.bytes += line.len();
        waiting.pushed += 1;
        waiting.lines.push_back(line);
        drop(waiting);
        self.0.filled.notify_one();
    }

    /// Waits until everything that was added before is written, at most this long. False if it is not.
    pub fn flush(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut waiting = self.0.waiting.lock();
        let goal = waiting.pushed;
        while waiting.written < goal {
            if self.0.emptied.wait_until(&mut waiting, end).timed_out() {
                return waiting.written >= goal;
            }
        }
        true
    }

    /// Lines given up since the start.
    pub fn dropped(&self) -> u64 {
        self.0.waiting.lock().dropped
    }
}

impl Shared {
    /// Waits for lines and takes them all, with the number of those given up before them.
    fn take(&self) -> (VecDeque<String>, u64) {
        let mut waiting = self.waiting.lock();
        while waiting.lines.is_empty() {
            self.filled.wait(&mut waiting);
        }
        waiting.bytes = 0;
        (std::mem::take(&mut waiting.lines), std::mem::take(&mut waiting.untold))
    }
}

/// One write for each output. A log that cannot be written must not stop the member.
fn write(outputs: &mut [Output], lines: &VecDeque<String>, dropped: u64) {
    let mut text: String = lines.iter().map(String::as_str).collect();
    if dropped > 0 {
        let now = super::timestamp(SystemTime::now());
        text.push_str(&format!(
            "{{\"level\":\"warn\",\"ts\":\"{now}\",\"caller\":\"logging/sink.rs:0\",\"msg\":\"log lines were given up: the \
             outputs are too slow\",\"dropped\":{dropped}}}\n"
        ));
    }
    for output in outputs {
        let _ = output.write(text.as_bytes());
    }
}

enum Output {
    Stderr,
    Stdout,
    File(LogFile),
}

impl Output {
    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        match self {
            Self::Stderr => io::stderr().lock().write_all(text),
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(text)?;
                stdout.flush()
            }
            Self::File(file) => file.write(text),
        }
    }
}

fn open(outputs: &[LogOutput], rotation: Option<&LogRotation>) -> io::Result<Vec<Output>> {
    let output = |output: &LogOutput| match output {
        LogOutput::Stderr => Ok(Output::Stderr),
        LogOutput::Stdout => Ok(Output::Stdout),
        LogOutput::File(path) => LogFile::open(path.clone(), rotation.cloned()).map(Output::File),
    };
    outputs.iter().map(output).collect()
}

/// A log file that is put aside when it has become large: `etcd.log` becomes `etcd-2006-01-02T15-04-05.000.log`.
struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    rotation: Option<LogRotation>,
}

impl LogFile {
    fn open(path: PathBuf, rotation: Option<LogRotation>) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(named)?;
        let bytes = file.metadata().map_err(named)?.len();
        Ok(Self { path, file, bytes, rotation })
    }

    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        let full =
            self.rotation.as_ref().is_some_and(|rotation| self.bytes + text.len() as u64 > rotation.file_bytes_max);
        if full && self.bytes > 0 {
            // If it cannot be put aside, it goes on growing: better a large log than none.
            let _ = self.put_aside(SystemTime::now());
        }
        self.file.write_all(text)?;
        self.bytes += text.len() as u64;
        Ok(())
    }

    fn put_aside(&mut self, now: SystemTime) -> io::Result<()> {
        fs::rename(&self.path, aside_name(&self.path, now))?;
        self.file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        self.bytes = 0;
        self.remove_old(now)
    }

    /// Removes files that were put aside and are too old, or too many.
    fn remove_old(&self, now: SystemTime) -> io::Result<()> {
        let Some(rotation) = &self.rotation else { return Ok(()) };
        for (position, (path, written)) in asides(&self.path)?.iter().enumerate() {
            let age = now.duration_since(*written).unwrap_or_default();
            if rotation.files_max.is_some_and(|max| position >= max) || rotation.age_max.is_some_and(|max| age > max) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

fn stem_and_ending(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let ending = path.extension().map(|ending| format!(".{}", ending.to_string_lossy())).unwrap_or_default();
    (text(path.file_stem()), ending)
}

fn aside_name(path: &Path, now: SystemTime) -> PathBuf {
    let (stem, ending) = stem_and_ending(path);
    // Milliseconds, and no colons, which some file systems do not take.
    let time = super::timestamp(now).replace(':', "-");
    path.with_file_name(format!("{stem}-{}{ending}", &time[..23]))
}

/// Files that were put aside, newest first, with the time of their last line.
fn asides(path: &Path) -> io::Result<Vec<(PathBuf, SystemTime)>> {
    let (stem, ending) = stem_and_ending(path);
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let time = name.strip_prefix(&format!("{stem}-")).and_then(|rest| rest.strip_suffix(&ending));
        if time.is_some_and(|time| time.len() == 23 && time.as_bytes()[10] == b'T') {
            found.push((entry.path(), entry.metadata()?.modified()?));
        }
    }
    // Their names sort by time.
    found.sort_by(|one, other| other.0.cmp(&one.0));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_counted_and_the_rest_is_kept_in_order() {
        let sink = Sink::default();
        for number in 0..LOG_LINES_WAITING_MAX + 7 {
            sink.push(format!("{number}\n"));
        }
        assert_eq!(sink.dropped(), 7);
        sink.push("x".repeat(LOG_WAITING_BYTES_MAX));
        assert_eq!(sink.dropped(), 8, "too many bytes");
        let (lines, dropped) = sink.0.take();
        assert_eq!((lines.len(), dropped), (LOG_LINES_WAITING_MAX, 8));
        assert_eq!(lines[1], "1\n");
        sink.push("again\n".into());
        assert_eq!(sink.0.take().1, 0, "told once");
        assert!(!sink.flush(Duration::from_millis(1)), "nobody writes");
    }

    #[test]
    fn a_flush_waits_for_the_file() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("log");
        let sink = Sink::start(&[LogOutput::File(path.clone())], None).expect("starts");
        for number in 0..100 {
            sink.push(format!("{number}\n"));
        }
        assert!(sink.flush(Duration::from_secs(10)));
        let text = fs::read_to_string(path).expect("log");
        assert_eq!(text.lines().count(), 100);
        assert!(text.ends_with("\n99\n"));
    }

    #[test]
    fn a_full_file_is_put_aside_and_old_ones_go() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("etcd.log");
        let rotation = LogRotation { file_bytes_max: 10, age_max: None, files_max: Some(2) };
        let mut file = LogFile::open(path.clone(), Some(rotation)).expect("opens");
        for day in 0..5 {
            file.write(b"123456\n").expect("written");
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(day * 86_400);
            file.put_aside(now).expect("put aside");
        }
        let names: Vec<_> = asides(&path)
            .expect("listed")
            .into_iter()
            .map(|(path, _)| path.file_name().unwrap_or_default().to_owned())
            .collect();
        assert_eq!(names, ["etcd-1970-01-05T00-00-00.000.log", "etcd-1970-01-04T00-00-00.000.log"]);
        file.write(b"123456\n").expect("written");
        assert_eq!(asides(&path).expect("listed").len(), 2, "the first line of a file never moves it");
        file.write(b"123456\n").expect("written");
        assert_eq!(fs::read(&path).expect("log"), b"123456\n", "a second one does not fit");
    }

    #[test]
    fn files_that_were_put_aside_go_when_they_are_old() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("log");
        let rotation = LogRotation { file_bytes_max: 1, age_max: Some(Duration::from_secs(86_400)), files_max: None };
        let mut file = LogFile::open(path.clone(), Some(rotation)).expect("opens");
        file.write(b"1\n").expect("written");
        file.put_aside(SystemTime::now()).expect("put aside");
        assert_eq!(asides(&path).expect("listed").len(), 1, "young");
        file.remove_old(SystemTime::now() + Duration::from_secs(2 * 86_400)).expect("removed");
        assert_eq!(asides(&path).expect("listed").len(), 0, "old");
    }
}
