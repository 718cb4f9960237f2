//! What the kernel says of the server's processes: CPU and memory, from `/proc`.

use std::fs;

use crate::error::Error;

/// The processes of one server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Processes<'a>(pub(crate) &'a [u32]);

/// Bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// Proportional set size: shared pages divided among those that map them.
    pub(crate) pss: u64,
    pub(crate) anonymous: u64,
    /// Resident set size, and the largest that it has ever been.
    pub(crate) rss: u64,
    pub(crate) peak: u64,
}

impl Processes<'_> {
    pub(crate) fn named(self) -> bool {
        !self.0.is_empty()
    }

    /// Seconds of CPU used so far, user and system, all threads, ended ones too. Error: a process is gone.
    pub(crate) fn cpu(self) -> Result<f64, Error> {
        let mut ticks = 0;
        for &pid in self.0 {
            ticks += read(pid, "stat").map(|text| stat_ticks(&text).unwrap_or(0))?;
        }
        Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    pub(crate) fn memory(self) -> Result<Memory, Error> {
        let mut sum = Memory::default();
        for &pid in self.0 {
            let text = read(pid, "smaps_rollup")?;
            sum.pss += field_bytes(&text, "Pss:").unwrap_or(0);
            sum.anonymous += field_bytes(&text, "Anonymous:").unwrap_or(0);
            let text = read(pid, "status")?;
            sum.rss += field_bytes(&text, "VmRSS:").unwrap_or(0);
            sum.peak += field_bytes(&text, "VmHWM:").unwrap_or(0);
        }
        Ok(sum)
    }
}

/// Bytes of the kernel's own allocations, for all processes; grows with the sockets of both ends.
pub(crate) fn kernel_slab() -> u64 {
    fs::read_to_string("/proc/meminfo").ok().and_then(|text| field_bytes(&text, "Slab:")).unwrap_or(0)
}

fn read(pid: u32, file: &str) -> Result<String, Error> {
    fs::read_to_string(format!("/proc/{pid}/{file}")).map_err(|error| Error::Process { pid, error })
}

/// utime + stime: fields 14 and 15 of proc_pid_stat(5). The name before them may contain anything.
fn stat_ticks(text: &str) -> Option<u64> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

fn field_bytes(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_ascii_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 1 2 3 4 150 25 0 0 20 0 3 0 99";
        assert_eq!(stat_ticks(stat), Some(175));
        let rollup = "55 [rollup]\nRss:  9 kB\nPss:   12 kB\nPss_Anon: 3 kB\nAnonymous:  5 kB\n";
        assert_eq!(field_bytes(rollup, "Pss:"), Some(12 * 1024));
        assert_eq!(field_bytes(rollup, "Anonymous:"), Some(5 * 1024));
    }

    #[test]
    fn this_process_has_memory_and_a_gone_one_is_an_error() {
        let own = [std::process::id()];
        let memory = Processes(&own).memory().unwrap();
        assert!(memory.pss > 0 && memory.rss > 0 && memory.peak >= memory.rss);
        assert!(Processes(&[u32::MAX]).cpu().is_err());
    }
}
