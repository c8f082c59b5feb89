//! Where the cgroup hierarchies are mounted, and where in them this process is.

use std::path::PathBuf;

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Controllers of a v1 hierarchy; `None` for v2.
    pub controllers: Option<Vec<String>>,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Which cgroup is visible at the mount point.
    pub root: String,
}

/// Finds the cgroup mounts in the text of `/proc/self/mountinfo` (man 5 proc_pid_mountinfo).
pub(super) fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    mountinfo.lines().filter_map(hierarchy).collect()
}

fn hierarchy(line: &str) -> Option<Hierarchy> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let root = unescape(left.next()?);
    let mount_point = PathBuf::from(unescape(left.next()?));
    let mut right = right.split(' ');
    let controllers = match right.next()? {
        "cgroup2" => None,
        "cgroup" => Some(right.nth(1)?.split(',').map(str::to_owned).collect()),
        _ => return None,
    };
    Some(Hierarchy {
        controllers,
        mount_point,
        root,
    })
}

/// Blank, tab, newline and backslash are written as octal numbers.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|octal| u8::from_str_radix(octal, 8).ok()) {
            Some(byte) => {
                plain.push(byte as char);
                plain.push_str(&part[3..]);
            }
            None => {
                plain.push('\\');
                plain.push_str(part);
            }
        }
    }
    plain
}

/// The cgroup of a process in the hierarchy of `controller` (`None`: v2), from the text of `/proc/self/cgroup`.
pub(super) fn own_path(cgroups: &str, controller: Option<&str>) -> Option<String> {
    cgroups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let id = fields.next()?;
        let controllers = fields.next()?;
        let path = fields.next()?;
        let found = match controller {
            None => id == "0" && controllers.is_empty(),
            Some(wanted) => controllers.split(',').any(|c| c == wanted),
        };
        found.then(|| path.to_owned())
    })
}

/// A cgroup's directory below a mount, if the mount shows it.
pub(super) fn below(hierarchy: &Hierarchy, cgroup: &str) -> Option<PathBuf> {
    let rest = if hierarchy.root == "/" {
        cgroup
    } else {
        cgroup.strip_prefix(&hierarchy.root)?
    };
    Some(hierarchy.mount_point.join(rest.trim_start_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
41 31 0:38 /docker/x\\040y /mnt/a\\040b rw,relatime - cgroup2 cgroup2 rw,nsdelegate
";

    #[test]
    fn mounts_of_both_versions_are_found() {
        let found = hierarchies(HYBRID);
        assert_eq!(found.len(), 3);
        assert!(
            found[1]
                .controllers
                .as_ref()
                .unwrap()
                .iter()
                .any(|c| c == "cpuacct")
        );
        assert_eq!(found[2].controllers, None);
        assert_eq!(found[2].mount_point, PathBuf::from("/mnt/a b"));
        assert_eq!(
            below(&found[2], "/docker/x y/z"),
            Some(PathBuf::from("/mnt/a b/z"))
        );
        assert_eq!(below(&found[2], "/elsewhere"), None);
    }

    #[test]
    fn the_own_cgroup_is_found_per_hierarchy() {
        let text = "9:name=systemd:/\n4:memory:/some/group\n2:cpu,cpuacct:/c\n0::/unified:odd\n";
        assert_eq!(own_path(text, Some("memory")), Some("/some/group".into()));
        assert_eq!(own_path(text, Some("cpuacct")), Some("/c".into()));
        assert_eq!(own_path(text, None), Some("/unified:odd".into()));
        assert_eq!(own_path(text, Some("pids")), None);
    }
}
