//! How much memory this process can still have: what the machine has left, and what the limits of
//! its control groups leave of it.

/// Bytes; `None` where the system does not say.
pub(super) fn available() -> Option<u64> {
    available_by(&|path| std::fs::read_to_string(path).ok())
}

/// [`available`], with `read` in place of the file system.
fn available_by(read: &dyn Fn(&str) -> Option<String>) -> Option<u64> {
    let machine = read("/proc/meminfo")
        .and_then(|text| field(&text, "MemAvailable:"))
        .map(|kib| kib.saturating_mul(1024));
    let groups = read("/proc/self/cgroup").unwrap_or_default();
    let limits = groups.lines().filter_map(|line| limit(line, read));
    machine.into_iter().chain(limits).min()
}

/// The number behind `name`, first of its line.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().map(str::split_whitespace);
    lines.find_map(|mut words| (words.next() == Some(name)).then(|| words.next()?.parse().ok())?)
}

/// What the control group of a line of `/proc/self/cgroup`, or one above it, leaves.
///
/// `0::/a/b` is of version 2; `4:memory:/a/b` of version 1, whose other hierarchies do not count
/// memory. In a container the path may be that of the host, which is not there; the container's own
/// group is then the topmost.
fn limit(line: &str, read: &dyn Fn(&str) -> Option<String>) -> Option<u64> {
    let mut parts = line.splitn(3, ':');
    let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let (mount, files) = if number == "0" && controllers.is_empty() {
        ("/sys/fs/cgroup", ["memory.max", "memory.current", "active_file", "inactive_file"])
    } else if controllers.split(',').any(|name| name == "memory") {
        let stat = ["total_active_file", "total_inactive_file"];
        let [active, inactive] = stat;
        let (limit, usage) = ("memory.limit_in_bytes", "memory.usage_in_bytes");
        ("/sys/fs/cgroup/memory", [limit, usage, active, inactive])
    } else {
        return None;
    };
    let left = |group: &str| {
        let number = |file: &str| read(&format!("{mount}{group}/{file}"))?.trim().parse().ok();
        let limit: u64 = number(files[0])?;
        let used: u64 = number(files[1])?;
        // Cached files count as used, and are given up for whoever asks.
        let stat = read(&format!("{mount}{group}/memory.stat")).unwrap_or_default();
        let cached = files[2..].iter().filter_map(|name| field(&stat, name)).sum();
        Some(limit.saturating_sub(used.saturating_sub(cached)))
    };
    let path = path.trim_end_matches('/');
    let above = path.char_indices().filter(|(_, c)| *c == '/').map(|(at, _)| &path[..at]);
    above.chain([path]).filter_map(left).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:  24684084 kB\nMemFree:  1 kB\nMemAvailable:   1000000 kB\n";
    const MACHINE: u64 = 1_024_000_000;

    fn told(files: &[(&str, &str)]) -> Option<u64> {
        available_by(&|path| {
            files.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn the_machine_alone() {
        assert_eq!(told(&[]), None);
        assert_eq!(told(&[("/proc/meminfo", "MemAvailable: many kB\n")]), None);
        assert_eq!(told(&[("/proc/meminfo", MEMINFO)]), Some(MACHINE));
        let none = ("/proc/self/cgroup", "0::/\n");
        assert_eq!(told(&[("/proc/meminfo", MEMINFO), none]), Some(MACHINE));
    }

    /// The tightest of a group and those above it; a file cache is not in the way.
    #[test]
    fn version_2() {
        let files = [
            ("/proc/meminfo", MEMINFO),
            ("/proc/self/cgroup", "0::/a/b\n"),
            ("/sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("/sys/fs/cgroup/a/b/memory.current", "7\n"),
            ("/sys/fs/cgroup/a/memory.max", "1000000\n"),
            ("/sys/fs/cgroup/a/memory.current", "900000\n"),
            (
                "/sys/fs/cgroup/a/memory.stat",
                "anon 1\nfile 9\ninactive_file 300\nactive_file 4000\n",
            ),
        ];
        assert_eq!(told(&files), Some(104_300));
        assert_eq!(told(&files[1..]), Some(104_300), "without /proc/meminfo");
        assert_eq!(told(&files[..4]), Some(MACHINE), "no limit");
    }

    /// The host's path is not there: the container's own group is the top.
    #[test]
    fn a_container() {
        let files = [
            ("/proc/meminfo", MEMINFO),
            ("/proc/self/cgroup", "0::/docker/0123\n"),
            ("/sys/fs/cgroup/memory.max", "500\n"),
            ("/sys/fs/cgroup/memory.current", "900\n"),
        ];
        assert_eq!(told(&files), Some(0), "used up");
    }

    #[test]
    fn version_1() {
        let files = [
            ("/proc/meminfo", MEMINFO),
            ("/proc/self/cgroup", "9:name=systemd:/x\n4:cpu,memory:/x/y\n1:cpu:/\n0::/\n"),
            ("/sys/fs/cgroup/memory/x/y/memory.limit_in_bytes", "2000\n"),
            ("/sys/fs/cgroup/memory/x/y/memory.usage_in_bytes", "1500\n"),
            ("/sys/fs/cgroup/memory/x/y/memory.stat", "active_file 1\ntotal_active_file 20\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "1500\n"),
        ];
        assert_eq!(told(&files), Some(520));
    }

    #[test]
    fn this_machine_says_something_or_nothing() {
        let (tib, told) = (1 << 40, available());
        assert!(told.is_none_or(|bytes| (1..1000 * tib).contains(&bytes)), "{told:?}");
    }
}
