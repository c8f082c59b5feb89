//! Cgroups of cells: where each controller lives (v2, v1 or nowhere), limits, freezing, killing, accounting.
//!
//! Every cell has a v2 cgroup with two children, `init` and `run`; commands are born into `run`. Freezing, killing
//! and listing processes use v2, which every kernel with cgroups has, beside v1 too. A limit is held by the v2
//! controller where it can be enabled, else by the v1 hierarchy that owns the controller. Moving a process between
//! cgroups waits for an RCU grace period (milliseconds), so init is moved once and everything else is born in place.

mod driver;
mod mounts;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, chownat, openat, unlinkat};
use rustix::process::{Pid, getpriority_process, setpriority_process};

pub use driver::{CgroupDriver, Features, Place};

use crate::error::{Context, Error, Result};
use crate::files;

/// How long to wait for cgroups to empty.
const VANISH_WAIT: Duration = Duration::from_secs(5);

/// Limits of a cell. `None` means no limit.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Limits {
    /// Memory of all processes together, page cache included, in bytes. No swap is used beyond it.
    pub memory_bytes: Option<u64>,
    /// Number of tasks (threads), init not counted.
    pub pids: Option<u64>,
    /// Processors' worth of time, for example 1.5.
    pub cpus: Option<f64>,
}

/// What a cell uses. `None` where no controller counts it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Memory in use, in bytes.
    pub memory_bytes: Option<u64>,
    /// The most memory that was in use at once, in bytes.
    pub memory_peak_bytes: Option<u64>,
    /// Number of tasks, init not counted.
    pub pids: Option<u64>,
    /// Processor time of everything that ran, in microseconds.
    pub cpu_usec: Option<u64>,
    /// How many processes were killed for want of memory.
    pub oom_kills: Option<u64>,
}

/// The cgroups of one cell. Holds few descriptors: there are hundreds of cells.
#[derive(Debug)]
pub struct Cgroup {
    name: String,
    parents: Arc<Parents>,
    run: OwnedFd,
    removed: bool,
}

/// The directories of one owner, in which the cells' directories are.
#[derive(Debug)]
pub(super) struct Parents {
    pub(super) v2: OwnedFd,
    /// V1 hierarchies with the controllers used there.
    pub(super) v1: Vec<(Vec<&'static str>, OwnedFd)>,
    pub(super) features: Features,
}

impl Cgroup {
    /// The v2 cgroup of the cell as a whole.
    pub fn cell(&self) -> Result<OwnedFd> {
        files::open_dir(&self.parents.v2, &self.name).context("open the cell's cgroup")
    }

    /// The v2 cgroup that commands are born into.
    pub fn run(&self) -> BorrowedFd<'_> {
        self.run.as_fd()
    }

    /// Lets `uid` (the cell's root) clone processes into `run`: the kernel asks for write permission on
    /// `cgroup.procs` of the target and of the common ancestor (cgroup-v2.rst, "Delegation Containment").
    pub(crate) fn delegate(&self, uid: u32) -> Result<()> {
        for dir in [self.cell()?.as_fd(), self.run()] {
            chownat(
                dir,
                "cgroup.procs",
                Some(Uid::from_raw(uid)),
                Some(Gid::from_raw(uid)),
                AtFlags::empty(),
            )
            .context("hand the cgroup to the cell's root")?;
        }
        Ok(())
    }

    /// Puts init into the v1 hierarchies; its children will follow it. The first write waits for the kernel, the
    /// others find it ready.
    pub(crate) fn adopt_v1(&self, init_pid: i32) -> Result<()> {
        for (controllers, parent) in &self.parents.v1 {
            files::write(
                parent,
                &format!("{}/cgroup.procs", self.name),
                &init_pid.to_string(),
            )
            .context(format!("put init into the {} cgroup", controllers.join(",")))?;
        }
        Ok(())
    }

    /// Puts init into its own v2 cgroup and enables the controllers for its sibling.
    pub(crate) fn adopt_v2(&self, init_pid: i32) -> Result<()> {
        let cell = self.cell()?;
        files::write(&cell, "init/cgroup.procs", &init_pid.to_string())
            .context("put init into its cgroup")?;
        for controller in self.parents.features.on_v2() {
            files::write(&cell, "cgroup.subtree_control", &format!("+{controller}"))
                .context(format!("enable the {controller} controller for the cell"))?;
        }
        Ok(())
    }

    /// Sets the limits, each absent one to "none".
    ///
    /// Errors: [`Error::NoController`] before anything is changed if a wanted limit has no controller; the kernel's
    /// error if a value is refused (memory below what is in use and cannot be freed: `EBUSY`).
    pub fn set_limits(&self, limits: &Limits) -> Result<()> {
        self.parents.features.check(limits)?;
        match self.parents.features.memory {
            Place::V2 => self.limit_memory_v2(limits.memory_bytes)?,
            Place::V1 => self.limit_memory_v1(limits.memory_bytes)?,
            Place::Nowhere(_) => {}
        }
        match self.parents.features.pids {
            Place::V2 => write(&self.run, "pids.max", &or_max(limits.pids))?,
            // Init is counted here.
            Place::V1 => write(
                &self.v1("pids")?,
                "pids.max",
                &or_max(limits.pids.map(|n| n.saturating_add(1))),
            )?,
            Place::Nowhere(_) => {}
        }
        const PERIOD_US: u64 = 100_000;
        let quota_us = limits
            .cpus
            .map(|cpus| ((cpus * PERIOD_US as f64) as u64).max(1000));
        match self.parents.features.cpu {
            Place::V2 => write(&self.run, "cpu.max", &format!("{} {PERIOD_US}", or_max(quota_us)))?,
            Place::V1 => {
                let dir = self.v1("cpu")?;
                write(&dir, "cpu.cfs_period_us", &PERIOD_US.to_string())?;
                write(
                    &dir,
                    "cpu.cfs_quota_us",
                    &quota_us.map_or("-1".into(), |q| q.to_string()),
                )?;
            }
            Place::Nowhere(_) => {}
        }
        Ok(())
    }

    fn limit_memory_v2(&self, bytes: Option<u64>) -> Result<()> {
        write(&self.run, "memory.max", &or_max(bytes))?;
        // Absent without swap accounting; then there is nothing to bound.
        let swap = if bytes.is_some() { "0" } else { "max" };
        optional(files::write(&self.run, "memory.swap.max", swap)).context("limit swap")?;
        Ok(())
    }

    /// Memory plus swap may never be below memory, so the order depends on the direction.
    fn limit_memory_v1(&self, bytes: Option<u64>) -> Result<()> {
        let dir = self.v1("memory")?;
        let value = bytes.map_or("-1".to_owned(), |b| b.to_string());
        let both = |file: &str| optional(files::write(&dir, file, &value)).context(format!("write {file}"));
        if files::write(&dir, "memory.limit_in_bytes", &value).is_ok() {
            return both("memory.memsw.limit_in_bytes");
        }
        both("memory.memsw.limit_in_bytes")?;
        write(&dir, "memory.limit_in_bytes", &value)
    }

    fn v1(&self, controller: &str) -> Result<OwnedFd> {
        let (_, parent) = self
            .parents
            .v1
            .iter()
            .find(|(controllers, _)| controllers.contains(&controller))
            .ok_or_else(|| Error::Invalid(format!("no v1 cgroup for {controller}")))?;
        files::open_dir(parent, &self.name).context(format!("open the {controller} cgroup"))
    }

    /// What the cell uses now.
    pub fn stats(&self) -> Result<Stats> {
        let mut stats = Stats {
            pids: Some(self.tasks()?),
            ..Stats::default()
        };
        match self.parents.features.memory {
            Place::V2 => {
                stats.memory_bytes = number(&self.run, "memory.current");
                stats.memory_peak_bytes = number(&self.run, "memory.peak");
                stats.oom_kills = keyed(&self.run, "memory.events", "oom_kill");
            }
            Place::V1 => {
                let dir = self.v1("memory")?;
                stats.memory_bytes = number(&dir, "memory.usage_in_bytes");
                stats.memory_peak_bytes = number(&dir, "memory.max_usage_in_bytes");
                stats.oom_kills = keyed(&dir, "memory.oom_control", "oom_kill");
            }
            Place::Nowhere(_) => {}
        }
        // Counted on v2 whether or not the controller is enabled there.
        stats.cpu_usec = keyed(&self.run, "cpu.stat", "usage_usec");
        Ok(stats)
    }

    fn tasks(&self) -> Result<u64> {
        let tasks = files::read(&self.run, "cgroup.threads").context("count the cell's tasks")?;
        Ok(tasks.lines().count() as u64)
    }

    /// PIDs, in the owner's PID namespace, of all processes but init.
    pub fn procs(&self) -> Result<Vec<i32>> {
        let procs = files::read(&self.run, "cgroup.procs").context("list the cell's processes")?;
        let mut pids: Vec<i32> = procs
            .lines()
            .filter_map(|line| line.trim().parse().ok())
            .collect();
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Stops all processes but init, waiting until the kernel says that they are. On failure nothing is frozen.
    ///
    /// Errors: [`Error::Silent`] if it takes longer than `bound` (a task in an uninterruptible wait).
    pub fn freeze(&self, bound: Duration) -> Result<()> {
        write(&self.run, "cgroup.freeze", "1")?;
        if self.is_frozen()? {
            return Ok(());
        }
        let hurried = self.hurry();
        let frozen = self.wait_event("frozen", 1, bound);
        for (task, nice) in hurried {
            // It may have been killed meanwhile.
            let _ = setpriority_process(Some(task), nice);
        }
        match frozen {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.thaw()?;
                Err(Error::Silent {
                    who: "kernel",
                    seconds: bound.as_secs(),
                    what: "freeze the sandbox's processes",
                })
            }
            Err(error) => {
                self.thaw()?;
                Err(error)
            }
        }
    }

    /// A task must run to stop, so while other work keeps the processors busy the cell's tasks get the best niceness;
    /// changing it also makes the scheduler look at once whom to run. Only a matter of speed, so failures are not
    /// told, and large crowds, which take longer than they gain, stay as they are. Gives back what was changed.
    fn hurry(&self) -> Vec<(Pid, i32)> {
        const CROWD: usize = 64;
        let tasks = files::read(&self.run, "cgroup.threads").unwrap_or_default();
        let tasks: Vec<Pid> = tasks
            .lines()
            .filter_map(|line| Pid::from_raw(line.parse().ok()?))
            .collect();
        if tasks.len() > CROWD {
            return Vec::new();
        }
        let mut changed = Vec::new();
        for task in tasks {
            if let Ok(nice) = getpriority_process(Some(task))
                && setpriority_process(Some(task), -20).is_ok()
            {
                changed.push((task, nice));
            }
        }
        changed
    }

    /// Asks for the freeze without waiting; see [`Self::is_frozen`].
    pub fn begin_freeze(&self) -> Result<()> {
        write(&self.run, "cgroup.freeze", "1")
    }

    /// Whether all processes but init are frozen.
    pub fn is_frozen(&self) -> Result<bool> {
        Ok(keyed(&self.run, "cgroup.events", "frozen") == Some(1))
    }

    /// Lets the processes run again.
    pub fn thaw(&self) -> Result<()> {
        write(&self.run, "cgroup.freeze", "0")
    }

    /// Waits until no process but init is left.
    pub(crate) fn wait_empty(&self, bound: Duration) -> Result<()> {
        if self.wait_event("populated", 0, bound)? {
            return Ok(());
        }
        Err(Error::Left {
            what: format!("a killed process of {}", self.name),
            seconds: bound.as_secs(),
        })
    }

    /// Kills all processes but init, frozen ones too (`cgroup.kill`, Linux >= 5.14). Only at the end of a cell: the
    /// kernel (seen on 6.18) takes a process that is cloned into the cgroup from outside (CLONE_INTO_CGROUP) for one
    /// that escaped the killing, however much later, because it compares the kill counters of two cgroups.
    pub(crate) fn kill_for_good(&self) -> Result<()> {
        write(&self.run, "cgroup.kill", "1")
    }

    /// Waits until `key` of `cgroup.events` has `value`; false when the bound passed. By looking again and again: the
    /// kernel announces changes by POLLPRI, but at most every 10 ms (CGROUP_FILE_NOTIFY_MIN_INTV), and the common
    /// case is over in microseconds.
    fn wait_event(&self, key: &str, value: u64, bound: Duration) -> Result<bool> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(&self.run, "cgroup.events", flags, Mode::empty()).context("watch the cgroup")?;
        let end = Instant::now() + bound;
        let mut pause = Duration::from_micros(20);
        loop {
            let mut content = [0; 256];
            let length = rustix::io::pread(&file, &mut content, 0).context("read cgroup.events")?;
            if find_key(&String::from_utf8_lossy(&content[..length]), key) == Some(value) {
                return Ok(true);
            }
            if Instant::now() >= end {
                return Ok(false);
            }
            std::thread::sleep(pause);
            pause = (pause * 5 / 4).min(Duration::from_millis(1));
        }
    }

    /// Removes the directories; all processes must be gone or dying.
    pub(crate) fn remove(&mut self) -> Result<()> {
        if self.removed {
            return Ok(());
        }
        let end = Instant::now() + VANISH_WAIT;
        let cell = self.cell()?;
        remove_dir(&cell, "run", end)?;
        remove_dir(&cell, "init", end)?;
        remove_dir(&self.parents.v2, &self.name, end)?;
        for (_, parent) in &self.parents.v1 {
            remove_dir(parent, &self.name, end)?;
        }
        self.removed = true;
        Ok(())
    }
}

/// Removes a cgroup, retrying while its last processes are being reaped.
fn remove_dir(parent: &OwnedFd, name: &str, end: Instant) -> Result<()> {
    let mut pause = Duration::from_micros(50);
    loop {
        match unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(rustix::io::Errno::BUSY) if Instant::now() < end => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(20));
            }
            Err(rustix::io::Errno::BUSY) => {
                return Err(Error::Left {
                    what: format!("cgroup {name}"),
                    seconds: VANISH_WAIT.as_secs(),
                });
            }
            Err(error) => return Err(error).context(format!("remove cgroup {name}")),
        }
    }
}

fn write(dir: &OwnedFd, file: &str, value: &str) -> Result<()> {
    files::write(dir, file, value).context(format!("write {value} to {file}"))
}

/// Success if the file does not exist: the feature behind it is not compiled in.
fn optional(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn or_max(value: Option<u64>) -> String {
    value.map_or("max".into(), |v| v.to_string())
}

fn number(dir: &OwnedFd, file: &str) -> Option<u64> {
    files::read(dir, file).ok()?.trim().parse().ok()
}

fn keyed(dir: &OwnedFd, file: &str, key: &str) -> Option<u64> {
    find_key(&files::read(dir, file).ok()?, key)
}

fn find_key(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plain files in the places of a v2 cgroup's, for what is written to them.
    fn v2_cell(dir: &std::path::Path) -> Cgroup {
        for path in ["cell/init", "cell/run"] {
            std::fs::create_dir_all(dir.join(path)).unwrap();
        }
        for file in ["memory.max", "memory.swap.max", "pids.max", "cpu.max"] {
            std::fs::write(dir.join("cell/run").join(file), "").unwrap();
        }
        for file in ["init/cgroup.procs", "cgroup.subtree_control"] {
            std::fs::write(dir.join("cell").join(file), "").unwrap();
        }
        let open = |path: &std::path::Path| files::open_dir(rustix::fs::CWD, path.to_str().unwrap()).unwrap();
        let features = Features {
            memory: Place::V2,
            pids: Place::V2,
            cpu: Place::V2,
        };
        let parents = Arc::new(Parents {
            v2: open(dir),
            v1: Vec::new(),
            features,
        });
        Cgroup {
            name: "cell".into(),
            parents,
            run: open(&dir.join("cell/run")),
            removed: false,
        }
    }

    #[test]
    fn limits_on_v2_are_written_where_the_kernel_wants_them() {
        let dir = tempfile::tempdir().unwrap();
        let cell = v2_cell(dir.path());
        let limits = Limits {
            memory_bytes: Some(64 << 20),
            pids: Some(100),
            cpus: Some(1.5),
        };
        cell.set_limits(&limits).unwrap();
        let written = |file: &str| std::fs::read_to_string(dir.path().join("cell/run").join(file)).unwrap();
        assert_eq!(written("memory.max"), "67108864");
        assert_eq!(written("memory.swap.max"), "0");
        // Init is elsewhere on v2, so it is not counted.
        assert_eq!(written("pids.max"), "100");
        assert_eq!(written("cpu.max"), "150000 100000");
        cell.adopt_v2(77).unwrap();
        assert_eq!(
            std::fs::read_to_string(dir.path().join("cell/init/cgroup.procs")).unwrap(),
            "77"
        );
    }

    #[test]
    fn a_limit_that_nothing_holds_is_refused_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut cell = v2_cell(dir.path());
        let why = "the pids controller is not compiled in".to_owned();
        let parents = Arc::get_mut(&mut cell.parents).unwrap();
        parents.features.pids = Place::Nowhere(why.clone());
        let both = Limits {
            memory_bytes: Some(64 << 20),
            pids: Some(9),
            cpus: None,
        };
        let refused = cell.set_limits(&both).unwrap_err().to_string();
        assert!(
            refused.contains("processes") && refused.contains(&why),
            "{refused}"
        );
        assert_eq!(
            std::fs::read_to_string(dir.path().join("cell/run/memory.max")).unwrap(),
            ""
        );
        cell.set_limits(&Limits { pids: None, ..both }).unwrap();
    }

    #[test]
    fn tables_of_keys_are_read() {
        let text = "usage_usec 12\nuser_usec 5\nfrozen x\n";
        assert_eq!(find_key(text, "usage_usec"), Some(12));
        assert_eq!(find_key(text, "usage"), None);
        assert_eq!(find_key(text, "frozen"), None);
    }
}
