//! What a process has used so far, out of Linux' /proc. Differences of two looks are the cost of what lay between.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use serde::Serialize;

/// Clock ticks per second in /proc/PID/stat: 100 on every Linux, whatever the kernel's own tick.
const TICKS_PER_SECOND: f64 = 100.0;

/// One look at a process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    pub user_seconds: f64,
    pub system_seconds: f64,
    pub resident_bytes: u64,
    /// Largest resident memory since the process began.
    pub resident_bytes_peak: u64,
    /// Bytes that the process had the disk write; 0 where that must not be read.
    pub written_bytes: u64,
    /// Times that a thread of the process gave up its processor to wait. Threads that have ended are not in it.
    pub voluntary_switches: u64,
}

impl Usage {
    /// Looks at process `pid`.
    pub fn of(pid: u32) -> Result<Self> {
        Self::read(&pid.to_string()).with_context(|| format!("cannot look at process {pid}"))
    }

    /// Looks at this process.
    pub fn of_self() -> Result<Self> {
        Self::read("self").context("cannot look at this process")
    }

    fn read(pid: &str) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let (user_seconds, system_seconds) = cpu_seconds(&stat).context("unknown form of /proc stat")?;
        let mut voluntary_switches = 0;
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may end between the listing and the look.
            if let Ok(status) = fs::read_to_string(task?.path().join("status")) {
                voluntary_switches += number(&status, "voluntary_ctxt_switches").unwrap_or(0);
            }
        }
        // Who may not look at another user's process sees the rest all the same.
        let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        Ok(Self {
            written_bytes: number(&io, "write_bytes").unwrap_or(0),
            user_seconds,
            system_seconds,
            resident_bytes: number(&status, "VmRSS").context("no VmRSS")? * 1024,
            resident_bytes_peak: number(&status, "VmHWM").context("no VmHWM")? * 1024,
            voluntary_switches,
        })
    }

    pub fn cpu_seconds(&self) -> f64 {
        self.user_seconds + self.system_seconds
    }
}

/// Some processes together at one moment of a run.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Sample {
    /// Since the start of the run.
    pub at_seconds: f64,
    /// Since the processes began.
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
    /// Since the processes began.
    pub written_bytes: u64,
}

impl Sample {
    /// Looks at the processes `pids`, `at` after the start.
    pub fn take(pids: &[u32], at: Duration) -> Result<Self> {
        let mut sample = Self { at_seconds: at.as_secs_f64(), ..Self::default() };
        for &pid in pids {
            let usage = Usage::of(pid)?;
            sample.cpu_seconds += usage.cpu_seconds();
            sample.resident_bytes += usage.resident_bytes;
            sample.written_bytes += usage.written_bytes;
        }
        Ok(sample)
    }
}

/// User and system time in a line of /proc/PID/stat. The command in it may hold spaces and parentheses.
fn cpu_seconds(stat: &str) -> Option<(f64, f64)> {
    let (_, after_command) = stat.rsplit_once(')')?;
    // Fields 14 and 15 of the line; the one after the command is field 3.
    let mut fields = after_command.split_ascii_whitespace().skip(11);
    let mut seconds = || Some(fields.next()?.parse::<u64>().ok()? as f64 / TICKS_PER_SECOND);
    Some((seconds()?, seconds()?))
}

/// The number in the line `name:   number ...`.
fn number(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_command() {
        let stat = "812 (a b) c) S 1 812 812 0 -1 4194560 45 0 3 0 250 75 0 0 20 0 12 0 5300 1 2 3";
        assert_eq!(cpu_seconds(stat), Some((2.5, 0.75)));
        assert_eq!(cpu_seconds("812 (etcd) S 1 812"), None);
    }

    #[test]
    fn numbers_are_found_by_their_whole_name() {
        let status = "Name:\tetcd\nVmHWM:\t  20480 kB\nVmRSS:\t 10240 kB\nvoluntary_ctxt_switches:\t77\nnonvoluntary_ctxt_switches:\t5\n";
        assert_eq!(number(status, "VmRSS"), Some(10_240));
        assert_eq!(number(status, "voluntary_ctxt_switches"), Some(77));
        assert_eq!(number(status, "VmSwap"), None);
    }

    #[test]
    fn this_process_uses_time_and_memory() {
        let before = Usage::of_self().expect("this process");
        let mut sum = 0_u64;
        while Usage::of_self().expect("this process").cpu_seconds() < before.cpu_seconds() + 0.02 {
            sum = sum.wrapping_mul(31).wrapping_add(std::hint::black_box(1));
        }
        assert!(before.resident_bytes > 0 && before.resident_bytes <= before.resident_bytes_peak);
        assert!(Usage::of(u32::MAX).is_err());
    }
}
