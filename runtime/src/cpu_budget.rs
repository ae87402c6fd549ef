//! How many threads a model may use. ONNX Runtime would take one for each core of the host, which in a container with
//! a limit means being throttled most of the time.
//!
//! In this order: the container's CPU limit (cgroup v2 or v1), else its CPU request (told by the environment), else
//! the cores that the process may run on. Reads a few files below the given roots; the decision itself is pure.

use std::path::{Path, PathBuf};

/// Where the answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The quota of a cgroup.
    Limit,
    /// `SERIN_CPU_REQUEST`.
    Request,
    /// The cores that the scheduler lets the process use.
    Affinity,
    /// The user said so.
    Flag,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Limit => "cpu limit",
            Self::Request => "cpu request",
            Self::Affinity => "cores",
            Self::Flag => "--threads",
        })
    }
}

/// The CPU time that the process may count on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// Cores, possibly a fraction.
    pub cores: f64,
    /// Who says so.
    pub source: Source,
}

impl Budget {
    /// Whole threads for computing, at least 1. Rounded down: a thread that exceeds the quota stalls all others.
    pub fn threads(&self) -> usize {
        (self.cores.floor() as usize).max(1)
    }
}

/// What is known about the process' share of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Facts {
    /// Cores by the tightest cgroup quota, if any.
    pub limit: Option<f64>,
    /// Cores by the container's request, if told.
    pub request: Option<f64>,
    /// Cores that the process may run on, at least 1.
    pub affinity: usize,
}

/// Decides. No limit or request is taken for more than the cores that there are.
pub fn decide(facts: Facts) -> Budget {
    let cores = facts.affinity.max(1) as f64;
    match facts {
        Facts { limit: Some(limit), .. } => Budget { cores: limit.min(cores), source: Source::Limit },
        Facts { request: Some(request), .. } => Budget { cores: request.min(cores), source: Source::Request },
        _ => Budget { cores, source: Source::Affinity },
    }
}

/// The facts about this process. `request` is a Kubernetes quantity such as `500m` or `2`.
pub fn facts(request: Option<f64>) -> Facts {
    let membership = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let affinity = std::thread::available_parallelism().map_or(1, usize::from);
    Facts { limit: cgroup_limit(Path::new("/sys/fs/cgroup"), &membership), request, affinity }
}

/// The tightest quota of the process' cgroup and those above it, in cores.
///
/// `membership` is the text of `/proc/self/cgroup`. In a container the mount often begins at the container's own
/// group while the text shows the host's path, so groups that are not there are passed over.
pub fn cgroup_limit(mount: &Path, membership: &str) -> Option<f64> {
    let mut limit: Option<f64> = None;
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let quota: fn(&Path) -> Option<f64> = match controllers {
            "" => v2_quota,
            _ if controllers.split(',').any(|controller| controller == "cpu") => v1_quota,
            _ => continue,
        };
        for hierarchy in hierarchies(mount, controllers) {
            let group = group.trim_start_matches('/');
            let groups = Path::new(group).ancestors().map(|group| hierarchy.join(group));
            let tightest = groups.filter_map(|group| quota(&group)).fold(f64::INFINITY, f64::min);
            if tightest.is_finite() {
                limit = Some(limit.map_or(tightest, |limit| limit.min(tightest)));
            }
        }
    }
    limit
}

fn hierarchies(mount: &Path, controllers: &str) -> Vec<PathBuf> {
    if controllers.is_empty() {
        return vec![mount.to_owned(), mount.join("unified")];
    }
    vec![mount.join(controllers), mount.join("cpu")]
}

/// `cpu.max`: `<quota> <period>` in microseconds, or `max`.
fn v2_quota(group: &Path) -> Option<f64> {
    let text = std::fs::read_to_string(group.join("cpu.max")).ok()?;
    let mut fields = text.split_whitespace();
    ratio(fields.next()?.parse().ok()?, fields.next().map_or(Some(100_000.0), |period| period.parse().ok())?)
}

/// `cpu.cfs_quota_us` and `cpu.cfs_period_us`; −1 is no limit.
fn v1_quota(group: &Path) -> Option<f64> {
    let read = |file: &str| std::fs::read_to_string(group.join(file)).ok()?.trim().parse::<f64>().ok();
    ratio(read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?)
}

fn ratio(quota: f64, period: f64) -> Option<f64> {
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

/// A Kubernetes quantity of CPU: `2`, `0.5`, `500m`.
///
/// # Errors
/// It is something else, or not above 0.
pub fn parse_quantity(text: &str) -> Result<f64, String> {
    let (number, unit) = match text.trim().strip_suffix('m') {
        Some(millis) => (millis, 0.001),
        None => (text.trim(), 1.0),
    };
    match number.parse::<f64>() {
        Ok(cores) if cores > 0.0 && cores.is_finite() => Ok(cores * unit),
        _ => Err(format!("expected cores such as `2`, `0.5` or `500m`, got `{text}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
            std::fs::write(path, text).expect("a file");
        }
        root
    }

    #[test]
    fn limits_are_found_in_either_version_and_at_any_height() {
        let check = |files: &[(&str, &str)], membership: &str, expect: Option<f64>| {
            let root = tree(files);
            assert_eq!(cgroup_limit(root.path(), membership), expect, "{files:?} {membership}");
        };
        // v2 in a container with its own namespace.
        check(&[("cpu.max", "150000 100000\n")], "0::/\n", Some(1.5));
        check(&[("cpu.max", "max 100000\n")], "0::/\n", None);
        check(&[], "0::/\n", None);
        check(&[], "", None);
        // v2 seen from the host: the tightest of all levels.
        let nested = [
            ("a/cpu.max", "400000 100000"),
            ("a/b/cpu.max", "50000 100000"),
            ("a/b/c/cpu.max", "max 100000"),
        ];
        check(&nested, "0::/a/b/c\n", Some(0.5));
        check(&nested, "0::/a\n", Some(4.0));
        // v1; the group of the text may lie above the mount.
        let v1 =
            [("cpu,cpuacct/cpu.cfs_quota_us", "200000\n"), ("cpu,cpuacct/cpu.cfs_period_us", "100000\n")];
        let membership = "11:memory:/kubepods/x\n4:cpu,cpuacct:/kubepods/x\n";
        check(&v1, membership, Some(2.0));
        let v1_free = [("cpu/cpu.cfs_quota_us", "-1"), ("cpu/cpu.cfs_period_us", "100000")];
        check(&v1_free, membership, None);
        // Both mounted: v1 has the controller.
        let hybrid =
            [("cpu/p/cpu.cfs_quota_us", "300000"), ("cpu/p/cpu.cfs_period_us", "100000"), ("unified/x", "")];
        check(&hybrid, "4:cpu:/p\n0::/p\n", Some(3.0));
    }

    #[test]
    fn limit_before_request_before_cores() {
        let check = |limit, request, affinity, cores, source, threads| {
            let budget = decide(Facts { limit, request, affinity });
            assert_eq!((budget, budget.threads()), (Budget { cores, source }, threads));
        };
        check(Some(2.5), Some(1.0), 8, 2.5, Source::Limit, 2);
        check(Some(0.5), None, 8, 0.5, Source::Limit, 1);
        check(Some(64.0), None, 8, 8.0, Source::Limit, 8);
        check(None, Some(3.0), 8, 3.0, Source::Request, 3);
        check(None, Some(0.1), 8, 0.1, Source::Request, 1);
        check(None, None, 8, 8.0, Source::Affinity, 8);
        check(None, None, 0, 1.0, Source::Affinity, 1);
    }

    #[test]
    fn quantities() {
        assert_eq!(parse_quantity("2"), Ok(2.0));
        assert_eq!(parse_quantity(" 0.5 "), Ok(0.5));
        assert_eq!(parse_quantity("250m"), Ok(0.25));
        for wrong in ["", "m", "2x", "-1", "0", "inf", "nan"] {
            assert!(parse_quantity(wrong).is_err(), "{wrong}");
        }
    }
}
