//! What the operating system says of this process: memory, time, files, network. Zeros where it says nothing.

/// A picture of the process.
#[derive(Debug, Default)]
pub(crate) struct Process {
    pub resident_bytes: u64,
    pub virtual_bytes: u64,
    /// As Prometheus' libraries show it: the largest number where there is no limit.
    pub virtual_bytes_max: f64,
    pub cpu_seconds: f64,
    pub threads: u64,
    pub open_files: u64,
    pub files_max: u64,
    /// Of all processes in the network namespace, as Prometheus' libraries count them.
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

impl Process {
    pub(crate) fn read() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        // Lines like `VmRSS:      1234 kB`: see proc(5).
        let field = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        use rustix::process::{Resource, getrlimit};
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let netstat = std::fs::read_to_string("/proc/self/net/netstat").unwrap_or_default();
        Self {
            resident_bytes: field("VmRSS:") * 1024,
            virtual_bytes: field("VmSize:") * 1024,
            virtual_bytes_max: getrlimit(Resource::As).current.unwrap_or(u64::MAX) as f64,
            cpu_seconds: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
            threads: field("Threads:"),
            open_files: std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64),
            files_max: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
            received_bytes: octets(&netstat, "InOctets"),
            sent_bytes: octets(&netstat, "OutOctets"),
        }
    }
}

/// A column of the block `IpExt`: a line of names, then a line of numbers.
fn octets(netstat: &str, column: &str) -> u64 {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("IpExt:"));
    let (Some(names), Some(numbers)) = (lines.next(), lines.next()) else { return 0 };
    let position = names.split_whitespace().position(|name| name == column);
    position.and_then(|position| numbers.split_whitespace().nth(position)?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_says_what_it_uses() {
        let process = Process::read();
        assert!(process.resident_bytes > 1 << 20 && process.virtual_bytes >= process.resident_bytes, "{process:?}");
        assert!(process.threads >= 1 && process.open_files >= 3 && process.files_max >= process.open_files);
        assert!(process.virtual_bytes_max >= process.virtual_bytes as f64);
    }

    #[test]
    fn columns_are_found_by_name() {
        let text = "TcpExt: A InOctets\nTcpExt: 1 2\nIpExt: X InOctets OutOctets\nIpExt: 3 4 5\n";
        assert_eq!((octets(text, "InOctets"), octets(text, "OutOctets"), octets(text, "Y")), (4, 5, 0));
        assert_eq!(octets("", "InOctets"), 0);
    }
}
