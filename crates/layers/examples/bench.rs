//! Measures the file half: `cargo run --release -p deltabox-layers --example bench -- [DIR [SAMPLES]]`, as root.
//!
//! Everything happens on a sparse image in DIR (default: the temporary directory), which is removed at the end.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use deltabox_layers::{Base, FileState, Frozen, IdMap, Retired, Store, StoreKind, StoreOptions, Way};
use rustix::fs::CWD;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, UnmountFlags, mount_change, move_mount, unmount};
use rustix::thread::UnshareFlags;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Sandbox {
    root: PathBuf,
    files: FileState,
    retired: Vec<Retired>,
}

impl Sandbox {
    fn create(store: &Store, dir: &Path, base: &Path) -> Result<Self> {
        let files = FileState::create(store, Base::directory(base), &IdMap::IDENTITY)?;
        let root = dir.join("root");
        fs::create_dir_all(&root)?;
        attach(&files.mount()?, &root)?;
        Ok(Self {
            root,
            files,
            retired: Vec::new(),
        })
    }

    fn put(&mut self, mount: &OwnedFd, retired: Option<Retired>) -> Result<()> {
        unmount(&self.root, UnmountFlags::DETACH)?;
        attach(mount, &self.root)?;
        self.retired.extend(retired);
        Ok(())
    }

    /// Freezes, and tells how long the call alone took.
    fn freeze(&mut self, way: Way) -> Result<(Frozen, Duration)> {
        let start = Instant::now();
        let mut freeze = self.files.freeze(way)?;
        let took = start.elapsed();
        if let Some(mount) = &freeze.mount {
            self.put(mount, freeze.retired.take())?;
        }
        Ok((freeze.frozen, took))
    }

    fn rollback(&mut self, to: &Frozen) -> Result<Duration> {
        let start = Instant::now();
        let switched = self.files.rollback(to)?;
        let took = start.elapsed();
        self.put(&switched.mount, Some(switched.retired))?;
        Ok(took)
    }

    /// What is done between two calls, not counted.
    fn rest(&mut self) -> Result<()> {
        self.retired.clear();
        self.files.prepare()?;
        Ok(())
    }

    fn write(&self, name: &str, bytes: usize) -> Result<()> {
        Ok(fs::write(self.root.join(name), vec![b'x'; bytes])?)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = unmount(&self.root, UnmountFlags::DETACH);
    }
}

fn attach(mount: &OwnedFd, at: &Path) -> Result<()> {
    Ok(move_mount(
        mount,
        "",
        CWD,
        at,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}

fn report(what: &str, mut samples: Vec<Duration>) {
    samples.sort();
    let at = |percent: usize| samples[(samples.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!(
        "{what:<58} p50 {:8.3}  p95 {:8.3}  p99 {:8.3} ms",
        at(50),
        at(95),
        at(99)
    );
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let parent = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let samples = arguments.next().map_or(Ok(200), |text| text.parse())?;
    deltabox_sys::clone::unshare_namespaces(UnshareFlags::NEWNS)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let dir = parent.join(format!("deltabox-layers-bench-{}", std::process::id()));
    fs::create_dir(&dir)?;
    let result = run(&dir, samples);
    let _ = fs::remove_dir_all(&dir);
    result
}

fn run(dir: &Path, samples: usize) -> Result<()> {
    for (name, files) in [("small", 100), ("large", 100_000)] {
        make_base(&dir.join(name), files)?;
    }
    for kind in [StoreKind::Btrfs, StoreKind::Xfs, StoreKind::Ext4] {
        let options = StoreOptions {
            dir: dir.join(format!("{kind:?}")),
            kind,
            image_size: 16 << 30,
            bases: vec![],
        };
        let store = Store::open(options)?;
        println!("\n{kind:?}: {:?}", store.features());
        for base in ["small", "large"] {
            switches(&store, dir, base, samples)?;
        }
        if store.features().snapshots {
            snapshots(&store, dir, samples.min(200))?;
        }
        depth(&store, dir)?;
        if store.features().reflink {
            large_file(&store, dir)?;
        }
        store.settle();
    }
    Ok(())
}

fn make_base(base: &Path, files: usize) -> Result<()> {
    for number in 0..files {
        let sub = base.join(format!("dir{}", number / 100));
        if number % 100 == 0 {
            fs::create_dir_all(&sub)?;
        }
        File::create(sub.join(format!("file{number}")))?;
    }
    Ok(())
}

fn switches(store: &Store, dir: &Path, base: &str, samples: usize) -> Result<()> {
    let mut sandbox = Sandbox::create(store, dir, &dir.join(base))?;
    let (mut freezes, mut back, mut cold) = (Vec::new(), Vec::new(), Vec::new());
    sandbox.write("first", 1024)?;
    let (first, _) = sandbox.freeze(Way::Switch)?;
    for number in 0..samples {
        sandbox.rest()?;
        sandbox.write(&format!("dir0/new{number}"), 1024)?;
        freezes.push(sandbox.freeze(Way::Switch)?.1);
        sandbox.rest()?;
        sandbox.write("dir0/file0", 10)?;
        back.push(sandbox.rollback(&sandbox.files.last())?);
        // To a state for which nothing was made ahead; there the depth is always the same.
        cold.push(sandbox.rollback(&first)?);
    }
    report(&format!("switch, root of {base} size"), freezes);
    report(&format!("rollback to the last state, root of {base} size"), back);
    report(&format!("rollback to another state, root of {base} size"), cold);
    Ok(())
}

fn snapshots(store: &Store, dir: &Path, samples: usize) -> Result<()> {
    let mut sandbox = Sandbox::create(store, dir, &dir.join("small"))?;
    let (mut freezes, mut back, mut cold) = (Vec::new(), Vec::new(), Vec::new());
    let mut flushes = Vec::new();
    for number in 0..samples {
        sandbox.write(&format!("dir0/new{}", number % 50), 1024)?;
        let start = Instant::now();
        sandbox.files.freeze_ahead()?;
        flushes.push(start.elapsed());
        freezes.push(sandbox.freeze(Way::Snapshot)?.1);
        if number % 4 == 0 {
            let last = sandbox.files.last();
            cold.push(sandbox.rollback(&last)?);
            sandbox.rest()?;
            back.push(sandbox.rollback(&last)?);
            sandbox.rest()?;
        }
    }
    report("flush before the stop, 1 KB written", flushes);
    report("snapshot", freezes);
    report("rollback to a snapshot, made ahead", back);
    report("rollback to a snapshot, nothing made ahead", cold);
    Ok(())
}

/// One sandbox with a history of 1,000 states, merged in the background as they come.
fn depth(store: &Store, dir: &Path) -> Result<()> {
    let mut sandbox = Sandbox::create(store, dir, &dir.join("small"))?;
    let (mut layers, mut merging) = (0, Duration::ZERO);
    for depth in 1..=1000 {
        sandbox.write(&format!("dir0/step{depth}"), 100)?;
        sandbox.freeze(Way::Switch)?;
        sandbox.rest()?;
        let start = Instant::now();
        layers = sandbox.files.squash_job().run()?.layers_after;
        merging += start.elapsed();
        if depth == 1 || depth == 1000 {
            measure_at_depth(&mut sandbox, depth)?;
        }
    }
    println!(
        "depth 1000 is {layers} layers; merging took {:.2} ms per state",
        merging.as_secs_f64()
    );
    Ok(())
}

fn measure_at_depth(sandbox: &mut Sandbox, depth: usize) -> Result<()> {
    let start = sandbox.files.last();
    let (mut freezes, mut creates, mut back) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..60 {
        back.push(sandbox.rollback(&start)?);
        sandbox.rest()?;
        let begin = Instant::now();
        for number in 0..20 {
            File::create(sandbox.root.join(format!("dir0/created{round}-{number}")))?;
        }
        creates.push(begin.elapsed());
        freezes.push(sandbox.freeze(Way::Switch)?.1);
    }
    sandbox.rollback(&start)?;
    report(&format!("depth {depth}: switch"), freezes);
    report(&format!("depth {depth}: rollback"), back);
    report(&format!("depth {depth}: creating 20 files"), creates);
    Ok(())
}

fn large_file(store: &Store, dir: &Path) -> Result<()> {
    let mut sandbox = Sandbox::create(store, dir, &dir.join("small"))?;
    sandbox.write("large", 256 << 20)?;
    let (state, _) = sandbox.freeze(Way::Switch)?;
    store.flush()?;
    let mut opens = Vec::new();
    for _ in 0..30 {
        sandbox.rollback(&state)?;
        let start = Instant::now();
        OpenOptions::new().write(true).open(sandbox.root.join("large"))?;
        opens.push(start.elapsed());
    }
    report("opening a 256 MB file of a frozen layer for writing", opens);
    Ok(())
}
