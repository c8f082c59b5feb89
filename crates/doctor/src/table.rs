//! The table of checks: what, whether it is required, what is lost without it, and how to get it.

use std::path::Path;

use crate::probes::{cgroups, files, memory, namespaces, processes, store};
use crate::report::Outcome;

/// One check.
pub struct Check {
    /// Short name, stable.
    pub name: &'static str,
    /// What is checked, for people.
    pub title: &'static str,
    /// Whether the main job cannot be done without it.
    pub required: bool,
    /// What is lost without it.
    pub lost: &'static str,
    /// How to get it.
    pub remedy: &'static str,
    pub(crate) probe: fn(&Path) -> Outcome,
    /// Cleans up what a probe that had to be killed may have left outside its directory.
    pub(crate) after_timeout: Option<fn()>,
}

const fn required(
    name: &'static str,
    title: &'static str,
    lost: &'static str,
    remedy: &'static str,
    probe: fn(&Path) -> Outcome,
) -> Check {
    Check {
        name,
        title,
        required: true,
        lost,
        remedy,
        probe,
        after_timeout: None,
    }
}

const fn optional(
    name: &'static str,
    title: &'static str,
    lost: &'static str,
    remedy: &'static str,
    probe: fn(&Path) -> Outcome,
) -> Check {
    Check {
        required: false,
        ..required(name, title, lost, remedy, probe)
    }
}

const fn cleaned(check: Check) -> Check {
    Check {
        after_timeout: Some(cgroups::sweep),
        ..check
    }
}

const NO_SANDBOX: &str = "sandboxes cannot be created";
const NO_ISOLATION: &str = "sandboxes cannot be isolated";
const NO_FILES: &str = "files cannot be checkpointed";
const NO_PROCESSES: &str = "processes cannot be checkpointed";
const NO_RECREATION: &str =
    "processes that ended since a checkpoint cannot be re-created with their process ids";
const AS_ROOT: &str = "run as root, outside of containers that restrict it";
const KERNEL: &str = "use a distribution's kernel of Linux 6.7 or newer";
const NAMESPACE: &str =
    "run as root on a kernel with namespaces, and raise /proc/sys/user/max_*_namespaces if it is 0";

/// All checks, in the order they are run and shown.
pub fn checks() -> &'static [Check] {
    CHECKS
}

static CHECKS: &[Check] = &[
    required(
        "kernel",
        "Linux 6.7 or newer",
        NO_PROCESSES,
        "update the kernel",
        memory::kernel,
    ),
    required(
        "root",
        "administration of mounts",
        NO_SANDBOX,
        AS_ROOT,
        namespaces::root,
    ),
    required(
        "overlay",
        "overlayfs by the new mount API (lowerdir+), read, copy-up, removal",
        NO_FILES,
        "load the module overlay; use a state directory on ext4, XFS or btrfs (not on overlayfs, NFS or FAT)",
        files::overlay,
    ),
    required(
        "overlay-options",
        "overlayfs options index, redirect_dir, xino, volatile",
        "hard links and renamed directories break in sandboxes",
        KERNEL,
        files::overlay_options,
    ),
    required(
        "idmapped",
        "idmapped mounts below overlayfs",
        "sandboxes with a user namespace cannot share layers",
        "use a state directory on ext4, XFS or btrfs",
        files::idmapped,
    ),
    required(
        "namespace-user",
        "user namespaces",
        NO_ISOLATION,
        NAMESPACE,
        namespaces::user,
    ),
    required(
        "namespace-mount",
        "mount namespaces",
        NO_ISOLATION,
        NAMESPACE,
        namespaces::mount,
    ),
    required(
        "namespace-pid",
        "PID namespaces",
        NO_ISOLATION,
        NAMESPACE,
        namespaces::pid,
    ),
    required(
        "namespace-net",
        "network namespaces",
        NO_ISOLATION,
        NAMESPACE,
        namespaces::net,
    ),
    required(
        "namespace-ipc",
        "IPC namespaces",
        NO_ISOLATION,
        NAMESPACE,
        namespaces::ipc,
    ),
    required(
        "namespace-uts",
        "host name namespaces",
        NO_ISOLATION,
        NAMESPACE,
        namespaces::uts,
    ),
    required(
        "namespace-cgroup",
        "cgroup namespaces",
        NO_ISOLATION,
        NAMESPACE,
        namespaces::cgroup,
    ),
    optional(
        "namespace-time",
        "time namespaces",
        "after a restore on a rebooted machine clocks of programs may jump",
        NAMESPACE,
        namespaces::time,
    ),
    cleaned(required(
        "cgroup2",
        "a cgroup v2 hierarchy, mounted or mountable",
        NO_SANDBOX,
        "run as root; inside a container give it a writable cgroup2 hierarchy",
        cgroups::hierarchy,
    )),
    cleaned(required(
        "cgroup-freeze",
        "cgroup.freeze stops a group",
        "the processes of a sandbox cannot be stopped at one instant",
        KERNEL,
        cgroups::freeze,
    )),
    cleaned(required(
        "cgroup-kill",
        "cgroup.kill ends a group",
        "fork bombs are hard to end",
        KERNEL,
        cgroups::kill,
    )),
    cleaned(optional(
        "limit-memory",
        "the memory controller",
        "limits on memory are refused",
        "boot with cgroup_enable=memory, or mount the controller",
        cgroups::memory,
    )),
    cleaned(optional(
        "limit-pids",
        "the pids controller",
        "limits on the number of processes are refused",
        "enable the pids controller in the kernel",
        cgroups::pids,
    )),
    cleaned(optional(
        "limit-cpu",
        "the cpu controller",
        "limits on processor time are refused",
        "enable the cpu controller in the kernel",
        cgroups::cpu,
    )),
    required(
        "seccomp",
        "seccomp filters",
        "system calls of sandboxes cannot be restricted",
        KERNEL,
        processes::seccomp,
    ),
    required(
        "userfaultfd",
        "userfaultfd with asynchronous write-protect",
        NO_PROCESSES,
        KERNEL,
        memory::userfaultfd,
    ),
    required(
        "pagemap-scan",
        "PAGEMAP_SCAN finds and re-protects written pages",
        NO_PROCESSES,
        KERNEL,
        memory::pagemap_scan,
    ),
    required(
        "ptrace",
        "ptrace: seize, interrupt, registers",
        NO_PROCESSES,
        "run as root with /proc/sys/kernel/yama/ptrace_scope below 3",
        processes::ptrace,
    ),
    required(
        "suspend-seccomp",
        "ptrace: seccomp suspended while stopped",
        "sandboxed processes with a filter cannot be checkpointed",
        "use a kernel with CONFIG_CHECKPOINT_RESTORE",
        processes::suspend_seccomp,
    ),
    required(
        "pidfd-getfd",
        "pidfd_getfd",
        "descriptors of processes cannot be taken",
        KERNEL,
        processes::pidfd_getfd,
    ),
    required(
        "kcmp",
        "kcmp tells shared objects",
        "shared descriptors would be told apart wrongly",
        "use a kernel with CONFIG_KCMP",
        processes::kcmp,
    ),
    required(
        "process-vm",
        "process_vm_readv and process_vm_writev",
        NO_PROCESSES,
        "use a kernel with CONFIG_CROSS_MEMORY_ATTACH",
        processes::process_vm,
    ),
    required(
        "set-tid",
        "clone3 with set_tid",
        NO_RECREATION,
        "use a kernel with CONFIG_CHECKPOINT_RESTORE, as root",
        processes::set_tid,
    ),
    required(
        "ns-last-pid",
        "ns_last_pid sets the next process id",
        NO_RECREATION,
        "use a kernel with CONFIG_CHECKPOINT_RESTORE",
        processes::ns_last_pid,
    ),
    optional(
        "tcp-repair",
        "TCP_REPAIR",
        "established TCP connections between processes of a sandbox are reset by a rollback",
        "use a kernel with TCP repair, as root",
        processes::tcp_repair,
    ),
    optional(
        "loop",
        "loop devices",
        "without a state directory on btrfs or XFS, the plain store is used: slower copy-up, no snapshots",
        "load the module loop; in a container give it /dev/loop-control and block devices",
        store::loop_device,
    ),
    optional(
        "btrfs",
        "btrfs: an image made, mounted, reflink and snapshot",
        "checkpoints with attached programs (sockets, watches, locks) are refused where a switch of layers would be visible",
        "install btrfs-progs, on a kernel with btrfs",
        store::btrfs,
    ),
    optional(
        "xfs",
        "XFS: an image made, mounted, reflink",
        "one of the two kinds of fast store",
        "install xfsprogs, on a kernel with XFS",
        store::xfs,
    ),
    optional(
        "store",
        "reflink and snapshots of the state directory itself",
        "the store is kept in a loop-mounted image inside the state directory",
        "put the state directory (DELTABOX_HOME) on btrfs",
        store::native,
    ),
    optional(
        "mapping-flags",
        "BPF iterator over mappings",
        "each look at a process takes 10 ms longer for each gigabyte it has resident",
        "use a kernel with CONFIG_BPF_SYSCALL and CONFIG_DEBUG_INFO_BTF, and run as root",
        memory::mapping_flags,
    ),
    optional(
        "huge-pages",
        "transparent huge pages on request",
        "forks of large sandboxes take up to ten times longer",
        "write madvise to /sys/kernel/mm/transparent_hugepage/enabled",
        memory::huge_pages,
    ),
    optional(
        "memory",
        "2 GB of memory available",
        "few or small sandboxes fit",
        "free or add memory",
        memory::available,
    ),
    optional(
        "disk",
        "4 GB free for the state directory",
        "few checkpoints fit",
        "free some space, or choose another DELTABOX_HOME",
        store::space,
    ),
    optional(
        "python",
        "python3 for the demo",
        "`deltabox demo` cannot run its program",
        "install python3 (its standard library is enough)",
        processes::python,
    ),
];

#[cfg(test)]
mod tests {
    use super::checks;

    #[test]
    fn names_are_unique_and_nothing_is_left_unsaid() {
        for (i, check) in checks().iter().enumerate() {
            assert!(
                checks()[..i].iter().all(|other| other.name != check.name),
                "{} twice",
                check.name
            );
            assert!(
                ![check.title, check.lost, check.remedy].contains(&""),
                "{}",
                check.name
            );
            assert!(
                check
                    .name
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            );
        }
    }
}
