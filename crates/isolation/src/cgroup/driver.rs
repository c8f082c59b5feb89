//! Finds out where cgroups can be made and which controllers hold there; makes and sweeps them.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::{Mode, mkdirat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::mounts::{Hierarchy, below, hierarchies, own_path};
use super::{Cgroup, Limits, Parents, VANISH_WAIT, remove_dir};
use crate::error::{Context, Error, Result};
use crate::files;

const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// How deep below a v1 hierarchy's top an owner may have been.
const SWEEP_DEPTH_MAX: u32 = 8;

/// Who holds a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The controller of the unified hierarchy.
    V2,
    /// The controller of a v1 hierarchy.
    V1,
    /// Nobody, for this reason.
    Nowhere(String),
}

/// Which limits can be held here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    /// Memory.
    pub memory: Place,
    /// Number of tasks.
    pub pids: Place,
    /// Processor time.
    pub cpu: Place,
}

impl Features {
    pub(super) fn on_v2(&self) -> impl Iterator<Item = &'static str> {
        let places = [&self.memory, &self.pids, &self.cpu];
        let on: Vec<&'static str> = CONTROLLERS
            .into_iter()
            .zip(places)
            .filter(|(_, p)| **p == Place::V2)
            .map(|(c, _)| c)
            .collect();
        on.into_iter()
    }

    /// Refuses limits that nothing holds, and limits that cannot be meant.
    pub fn check(&self, limits: &Limits) -> Result<()> {
        let refuse = |what, place: &Place, wanted: bool| match place {
            Place::Nowhere(why) if wanted => Err(Error::NoController {
                what,
                why: why.clone(),
            }),
            _ => Ok(()),
        };
        refuse("memory", &self.memory, limits.memory_bytes.is_some())?;
        refuse("the number of processes", &self.pids, limits.pids.is_some())?;
        refuse("processor time", &self.cpu, limits.cpus.is_some())?;
        if limits.cpus.is_some_and(|cpus| !cpus.is_finite() || cpus < 0.01) {
            return Err(Error::Invalid(
                "a limit on processors must be at least 0.01".into(),
            ));
        }
        if limits.memory_bytes.is_some_and(|bytes| bytes < 1 << 20) {
            return Err(Error::Invalid("a limit on memory must be at least 1 MiB".into()));
        }
        if limits.pids == Some(0) {
            return Err(Error::Invalid("a limit on processes must be at least 1".into()));
        }
        Ok(())
    }
}

/// Makes the cgroups of the cells of one owner, all below directories named after its state.
#[derive(Debug)]
pub struct CgroupDriver {
    state_dir: String,
    parents: Arc<Parents>,
    /// Directories that hold the state's directories, to remove those at the end.
    bases: Vec<OwnedFd>,
    /// Where v1 hierarchies are mounted.
    v1_mounts: Vec<PathBuf>,
}

impl CgroupDriver {
    /// Looks at the hierarchies of this machine and makes the directories of `state`, an identifier that differs
    /// between owners running side by side (letters, digits, `-`, `_`).
    ///
    /// Errors: no v2 hierarchy can be mounted or written. Missing controllers are not an error, see
    /// [`Self::features`].
    pub fn detect(state: &str) -> Result<Self> {
        check_name(state)?;
        let mounts = hierarchies(&fs::read_to_string("/proc/self/mountinfo").context("read mountinfo")?);
        let own = fs::read_to_string("/proc/self/cgroup").context("read the own cgroup")?;
        let state_dir = format!("deltabox-{state}");
        let base = v2_base(&mounts)?;
        let enabled = enable_on(&base);
        make_dir(&base, &state_dir)?;
        let v2 = files::open_dir(&base, &state_dir).context("open the state's cgroup")?;
        let enabled = |controller: &str| {
            enabled.contains(&controller)
                && files::write(&v2, "cgroup.subtree_control", &format!("+{controller}")).is_ok()
        };
        let mut v1 = V1Places {
            mounts: &mounts,
            own: &own,
            state_dir: &state_dir,
            used: Vec::new(),
            bases: vec![base],
        };
        let features = Features {
            memory: if enabled("memory") {
                Place::V2
            } else {
                v1.place("memory")?
            },
            pids: if enabled("pids") {
                Place::V2
            } else {
                v1.place("pids")?
            },
            cpu: if enabled("cpu") {
                Place::V2
            } else {
                v1.place("cpu")?
            },
        };
        let V1Places { used, bases, .. } = v1;
        let parents = Arc::new(Parents {
            v2,
            v1: used,
            features,
        });
        let v1_mounts = mounts
            .into_iter()
            .filter(|m| m.controllers.is_some())
            .map(|m| m.mount_point)
            .collect();
        Ok(Self {
            state_dir,
            parents,
            bases,
            v1_mounts,
        })
    }

    /// Which limits can be held here.
    pub fn features(&self) -> &Features {
        &self.parents.features
    }

    /// Whether init is counted against the memory limit of its cell, so that commands must be made the likelier
    /// victims when memory runs out.
    pub(crate) fn init_shares_memory_limit(&self) -> bool {
        self.parents.features.memory == Place::V1
    }

    /// Makes the cgroups of a cell. `name` must be unique among the cells of this owner.
    pub fn create(&self, name: &str) -> Result<Cgroup> {
        check_name(name)?;
        let parent = &self.parents.v2;
        mkdirat(parent, name, Mode::from_raw_mode(0o755)).context(format!("make cgroup {name}"))?;
        let made = self.fill(name);
        if made.is_err() {
            // Half-made directories are empty: a cell has no processes yet. The first failure is the one to tell.
            let _ = remove_tree(parent, name, Instant::now());
            for (_, parent) in &self.parents.v1 {
                let _ = remove_dir(parent, name, Instant::now());
            }
        }
        made
    }

    fn fill(&self, name: &str) -> Result<Cgroup> {
        let cell = files::open_dir(&self.parents.v2, name).context("open the cell's cgroup")?;
        make_dir(&cell, "init")?;
        make_dir(&cell, "run")?;
        let run = files::open_dir(&cell, "run").context("open the commands' cgroup")?;
        for (_, parent) in &self.parents.v1 {
            make_dir(parent, name)?;
        }
        Ok(Cgroup {
            name: name.to_owned(),
            parents: Arc::clone(&self.parents),
            run,
            removed: false,
        })
    }

    /// Kills what a dead owner of the same state left and removes its cgroups, also where that owner was in another
    /// v1 cgroup than this one. To be called before the first cell.
    pub fn sweep(&self) -> Result<()> {
        let end = Instant::now() + VANISH_WAIT;
        let current: Vec<&OwnedFd> = std::iter::once(&self.parents.v2)
            .chain(self.parents.v1.iter().map(|(_, dir)| dir))
            .collect();
        for dir in &current {
            kill_below(dir);
            for name in children(dir)? {
                remove_tree(dir, &name, end)?;
            }
        }
        let current: Vec<(u64, u64)> = current.into_iter().map(identity).collect::<Result<_>>()?;
        for mount in &self.v1_mounts {
            // A hierarchy that cannot be listed holds nothing that this owner could have made.
            let Ok(top) = open_path(mount) else { continue };
            self.sweep_elsewhere(&top, &current, SWEEP_DEPTH_MAX, end)?;
        }
        Ok(())
    }

    fn sweep_elsewhere(&self, dir: &OwnedFd, current: &[(u64, u64)], depth: u32, end: Instant) -> Result<()> {
        for name in children(dir).unwrap_or_default() {
            // Cgroups of others come and go meanwhile.
            let Ok(child) = files::open_dir(dir, &name) else {
                continue;
            };
            if name != self.state_dir {
                if depth > 0 {
                    self.sweep_elsewhere(&child, current, depth - 1, end)?;
                }
            } else if !current.contains(&identity(&child)?) {
                kill_below(&child);
                remove_tree(dir, &name, end)?;
            }
        }
        Ok(())
    }

    /// Removes the state's directories. All cells must be gone.
    pub fn remove(&self) -> Result<()> {
        let end = Instant::now() + VANISH_WAIT;
        for base in &self.bases {
            remove_dir(base, &self.state_dir, end)?;
        }
        Ok(())
    }
}

/// Finds the v1 hierarchies that hold limits, and makes the state's directories there.
struct V1Places<'a> {
    mounts: &'a [Hierarchy],
    own: &'a str,
    state_dir: &'a str,
    used: Vec<(Vec<&'static str>, OwnedFd)>,
    bases: Vec<OwnedFd>,
}

impl V1Places<'_> {
    fn place(&mut self, controller: &'static str) -> Result<Place> {
        let (shared, base) = match v1_base(self.mounts, self.own, controller) {
            Ok(found) => found,
            Err(why) => return Ok(Place::Nowhere(why)),
        };
        // Several controllers may share one hierarchy.
        let same = self
            .used
            .iter_mut()
            .find(|(used, _)| used.iter().any(|c| shared.iter().any(|s| s == c)));
        if let Some((used, _)) = same {
            used.push(controller);
            return Ok(Place::V1);
        }
        make_dir(&base, self.state_dir)?;
        let dir = files::open_dir(&base, self.state_dir).context("open the state's cgroup")?;
        self.used.push((vec![controller], dir));
        self.bases.push(base);
        Ok(Place::V1)
    }
}

/// Device and inode.
fn identity(dir: &OwnedFd) -> Result<(u64, u64)> {
    let stat = rustix::fs::fstat(dir).context("look at a cgroup")?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Opens the cgroup below which cells can live in the v2 hierarchy: the root that this process sees. Without a
/// mounted v2 hierarchy one is mounted that only this process holds. (An existing one is not mounted a second time:
/// that would change its options, such as nsdelegate, for the whole machine.)
fn v2_base(mounts: &[Hierarchy]) -> Result<OwnedFd> {
    let mounted = mounts.iter().find(|m| m.controllers.is_none());
    let Some(mounted) = mounted else {
        let context =
            fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC).context("open the cgroup2 filesystem")?;
        fsconfig_create(&context).context("make a cgroup2 instance")?;
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
            .context("mount cgroup2")?;
        return files::open_dir(&mount, ".").context("open the cgroup2 hierarchy");
    };
    open_path(&mounted.mount_point)
}

fn open_path(path: &Path) -> Result<OwnedFd> {
    files::open_dir(rustix::fs::CWD, &path.to_string_lossy()).context(format!("open {}", path.display()))
}

/// Enables what can be enabled for children of `base`; says what is enabled.
fn enable_on(base: &OwnedFd) -> Vec<&'static str> {
    let has = |file: &str, c: &str| {
        files::read(base, file).is_ok_and(|text| text.split_whitespace().any(|w| w == c))
    };
    let mut evacuated = false;
    CONTROLLERS
        .into_iter()
        .filter(|controller| {
            if has("cgroup.subtree_control", controller) {
                return true;
            }
            if !has("cgroup.controllers", controller) {
                return false;
            }
            let enable = || files::write(base, "cgroup.subtree_control", &format!("+{controller}"));
            match enable() {
                Ok(()) => true,
                // The root of a cgroup namespace may hold processes, which forbids controllers below it. Inside a
                // container they may be moved aside, once.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && !evacuated => {
                    evacuated = true;
                    evacuate(base).is_ok() && enable().is_ok()
                }
                Err(_) => false,
            }
        })
        .collect()
}

/// Moves the processes of the visible root into a child.
fn evacuate(base: &OwnedFd) -> Result<()> {
    const ASIDE: &str = "deltabox-aside";
    make_dir(base, ASIDE)?;
    let aside = files::open_dir(base, ASIDE).context("open a cgroup")?;
    for pid in files::read(base, "cgroup.procs")
        .context("list processes")?
        .lines()
    {
        // A process that ended meanwhile, or one of the kernel, stays.
        let _ = files::write(&aside, "cgroup.procs", pid);
    }
    Ok(())
}

/// This process's own cgroup in the v1 hierarchy of a controller, so that limits from above keep holding; and the
/// controllers that share the hierarchy.
fn v1_base(mounts: &[Hierarchy], own: &str, controller: &str) -> Result<(Vec<String>, OwnedFd), String> {
    let of = |m: &&Hierarchy| {
        m.controllers
            .as_ref()
            .is_some_and(|c| c.iter().any(|c| c == controller))
    };
    let Some(mount) = mounts.iter().find(of) else {
        return Err(format!(
            "the {controller} controller is neither available on cgroup v2 (cgroup.controllers) nor mounted on v1; \
             enable it at boot (cgroup_enable={controller}) or mount its hierarchy"
        ));
    };
    let path: PathBuf = own_path(own, Some(controller))
        .and_then(|path| below(mount, &path))
        .filter(|path| path.is_dir())
        .unwrap_or_else(|| mount.mount_point.clone());
    if rustix::fs::access(&path, rustix::fs::Access::WRITE_OK).is_err() {
        return Err(format!(
            "{} cannot be written; mount the hierarchy read-write",
            path.display()
        ));
    }
    let dir = open_path(&path).map_err(|e| e.to_string())?;
    Ok((mount.controllers.clone().unwrap_or_default(), dir))
}

fn make_dir(parent: &OwnedFd, name: &str) -> Result<()> {
    match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error).context(format!("make cgroup {name}")),
    }
}

fn check_name(name: &str) -> Result<()> {
    let fits = !name.is_empty()
        && name.len() <= 100
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if fits {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "{name:?} cannot name a cgroup; use 1 to 100 letters, digits, - and _"
    )))
}

/// Names of the child cgroups.
fn children(dir: &OwnedFd) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let listing = rustix::fs::Dir::read_from(dir.as_fd()).context("list cgroups")?;
    for entry in listing {
        let entry = entry.context("list cgroups")?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type() == rustix::fs::FileType::Directory && name != "." && name != ".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// Kills every process below, with `cgroup.kill` or, on v1, one by one.
fn kill_below(dir: &OwnedFd) {
    if files::write(dir, "cgroup.kill", "1").is_ok() {
        return;
    }
    let Ok(names) = children(dir) else { return };
    for child in names.iter().filter_map(|name| files::open_dir(dir, name).ok()) {
        kill_below(&child);
        let pids = files::read(&child, "cgroup.procs").unwrap_or_default();
        for pid in pids
            .lines()
            .filter_map(|line| rustix::process::Pid::from_raw(line.parse().ok()?))
        {
            // It may have ended by itself.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

fn remove_tree(parent: &OwnedFd, name: &str, end: Instant) -> Result<()> {
    if let Ok(dir) = files::open_dir(parent, name) {
        for child in children(&dir)? {
            remove_tree(&dir, &child, end)?;
        }
    }
    remove_dir(parent, name, end)
}
