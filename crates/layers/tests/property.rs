//! Random operations, freezes, rollbacks and squashes, compared with a plain directory.
//!
//! `DELTABOX_SEED` repeats a run, `DELTABOX_OPERATIONS` sets its length (10,000 for the long one), and from
//! `DELTABOX_CHECK_FROM` on the trees are compared after each operation, to find the one that failed.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use deltabox_layers::{Base, Entry, Frozen, Store, StoreKind, Way};
use rustix::io::Errno;
use support::changes::check_changes;
use support::ops::Op;
use support::rng::Rng;
use support::scan::{Scan, compare, compare_space, scan};
use support::{Sandbox, isolated, open};

#[derive(Clone)]
struct State {
    frozen: Frozen,
    /// Of the copy of the model.
    number: usize,
    /// What each file took on disk.
    space: BTreeMap<PathBuf, u64>,
}

struct Run {
    seed: u64,
    check_from: u64,
    rng: Rng,
    sandbox: Sandbox,
    model: PathBuf,
    copies: PathBuf,
    ways: &'static [Way],
    store: Store,
    base: Base,
    states: Vec<State>,
    log: Vec<String>,
}

impl Run {
    fn operation(&mut self, number: u64) {
        let op = random_op(&mut self.rng, &self.model);
        let wanted = op.apply(&self.model, number);
        let seen = op.apply(&self.sandbox.root, number);
        self.log
            .push(format!("{number}: {:.200} -> {wanted:?}", format!("{op:?}")));
        // What a rename onto a directory that is not empty is told depends on the filesystem.
        let uniform = |result| {
            if result == Err(Errno::EXIST) {
                Err(Errno::NOTEMPTY)
            } else {
                result
            }
        };
        if uniform(seen) != uniform(wanted) {
            self.fail(&format!("the result is {seen:?} instead of {wanted:?}"));
        }
    }

    fn check(&mut self, wanted: &Scan, space: Option<&BTreeMap<PathBuf, u64>>, what: &str) {
        let seen = scan(&self.sandbox.root);
        let mut differences = compare(&seen, wanted);
        if let Some(space) = space {
            differences.extend(compare_space(&seen, space));
        }
        if !differences.is_empty() {
            self.fail(&format!("{what}:\n{}", differences.join("\n")));
        }
    }

    fn checkpoint(&mut self) {
        let way = *self.rng.pick(self.ways);
        let space = scan(&self.sandbox.root).allocated;
        if self.rng.below(2) == 0 {
            self.sandbox.files.freeze_ahead().unwrap();
        }
        let frozen = self.sandbox.freeze(way);
        let number = self.states.len();
        self.log.push(format!("freeze {number}: {way:?} {frozen}"));
        copy(&self.model, &self.copies.join(number.to_string()));
        let wanted = scan(&self.model);
        self.check(&wanted, Some(&space), "after a freeze");
        self.states.push(State {
            frozen,
            number,
            space,
        });
    }

    fn rollback(&mut self) {
        if self.states.is_empty() {
            return;
        }
        let State {
            frozen,
            number,
            space,
        } = self.rng.pick(&self.states).clone();
        self.log.push(format!("rollback {number}: {frozen}"));
        self.sandbox.rollback(&frozen);
        fs::remove_dir_all(&self.model).unwrap();
        copy(&self.copies.join(number.to_string()), &self.model);
        let wanted = scan(&self.model);
        self.check(&wanted, Some(&space), "after a rollback");
        self.view(&frozen, &wanted);
    }

    /// What is computed from the layers must be what overlayfs shows.
    fn view(&mut self, frozen: &Frozen, wanted: &Scan) {
        let view = self.store.view(&self.base, frozen).unwrap();
        let mut seen = BTreeMap::new();
        view.walk(&mut |path, entry| {
            seen.insert(
                path.to_path_buf(),
                (entry.mode, entry.size, entry.names, xattr_map(entry)),
            );
            Ok(())
        })
        .unwrap();
        for (path, node) in &wanted.nodes {
            let names = if node.kind == 'd' { 1 } else { node.link_count };
            let wanted = (node.mode & 0o7777, node.size, names, node.xattrs.clone());
            if seen.remove(path) != Some(wanted) {
                self.fail(&format!("{} is not right in the computed view", path.display()));
            }
        }
        if !seen.is_empty() {
            self.fail(&format!("{:?} should not be in the computed view", seen.keys()));
        }
    }

    /// The difference of two states must be that of their copies.
    fn diff(&mut self) {
        if self.states.len() < 2 {
            return;
        }
        let (one, other) = (
            self.rng.pick(&self.states).clone(),
            self.rng.pick(&self.states).clone(),
        );
        let view = |state: &State| self.store.view(&self.base, &state.frozen).unwrap();
        let changes = view(&one).diff(&view(&other)).unwrap();
        let copy = |state: &State| scan(&self.copies.join(state.number.to_string())).nodes;
        let mut problems = check_changes(&changes, &copy(&one), &copy(&other));
        let all = view(&one).changes_to_base().unwrap();
        problems.extend(check_changes(
            &all,
            &scan(&self.base.layers[0]).nodes,
            &copy(&one),
        ));
        if !problems.is_empty() {
            let told: Vec<_> = changes
                .iter()
                .map(|change| {
                    format!(
                        "{:?} {} {:?}",
                        change.kind,
                        change.path.display(),
                        change.moved_from
                    )
                })
                .collect();
            self.log.push(told.join("\n"));
            let what = format!("the difference of {} and {} is wrong", one.number, other.number);
            self.fail(&format!("{what}:\n{}", problems.join("\n")));
        }
    }

    fn step(&mut self, number: u64) {
        self.operation(number);
        if number >= self.check_from {
            let wanted = scan(&self.model);
            self.check(&wanted, None, "after this step");
        }
        match self.rng.below(100) {
            0..=4 => self.checkpoint(),
            5 | 6 => self.rollback(),
            7 => {
                let squashed = self.sandbox.files.squash_job().run().unwrap();
                self.log.push(format!("squash {squashed:?}"));
            }
            8 | 9 => {
                self.log.push("prepare".into());
                self.sandbox.files.prepare().unwrap();
            }
            10 => self.diff(),
            12..=14 => {
                self.log.push("freeze ahead".into());
                self.sandbox.files.freeze_ahead().unwrap();
            }
            11 => {
                let wanted = scan(&self.model);
                self.check(&wanted, None, "while running");
            }
            _ => {}
        }
    }

    fn fail(&self, why: &str) -> ! {
        let start = self.log.len().saturating_sub(60);
        panic!(
            "seed {}: {why}\nlast steps:\n{}",
            self.seed,
            self.log[start..].join("\n")
        );
    }
}

fn xattr_map(entry: &Entry) -> BTreeMap<String, Vec<u8>> {
    entry
        .xattrs()
        .unwrap()
        .into_iter()
        .map(|(name, value)| (name.into_string().unwrap(), value))
        .collect()
}

fn random_op(rng: &mut Rng, root: &Path) -> Op {
    let known: Vec<PathBuf> = scan_names(root).into_iter().skip(1).collect();
    let is_dir = |path: &&PathBuf| root.join(path).symlink_metadata().unwrap().is_dir();
    let dirs: Vec<PathBuf> = known.iter().filter(is_dir).cloned().collect();
    Op::random(rng, &known, &dirs)
}

fn scan_names(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::new()];
    let mut at = 0;
    while at < found.len() {
        let path = found[at].clone();
        at += 1;
        if root.join(&path).symlink_metadata().unwrap().is_dir() {
            let mut entries: Vec<_> = fs::read_dir(root.join(&path))
                .unwrap()
                .map(|entry| path.join(entry.unwrap().file_name()))
                .collect();
            // The order of a directory is not the seed's.
            entries.sort();
            found.extend(entries);
        }
    }
    found
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

fn seed() -> u64 {
    let given = std::env::var("DELTABOX_SEED")
        .ok()
        .map(|seed| seed.parse().expect("DELTABOX_SEED is a number"));
    given.unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64 % 1_000_000_007
    })
}

fn run(kind: StoreKind, ways: &'static [Way]) {
    let operations = std::env::var("DELTABOX_OPERATIONS").map_or(600, |text| text.parse().unwrap());
    let seed = seed();
    let check_from = std::env::var("DELTABOX_CHECK_FROM").map_or(u64::MAX, |text| text.parse().unwrap());
    println!("seed {seed}");
    isolated(move |dir| {
        let mut rng = Rng::new(seed);
        let base = dir.join("base");
        fs::create_dir(&base).unwrap();
        for number in 0..150 {
            let _ = random_op(&mut rng, &base).apply(&base, number);
        }
        let model = dir.join("model");
        copy(&base, &model);
        let copies = dir.join("copies");
        fs::create_dir(&copies).unwrap();
        let store = open(dir, kind);
        let base = Base::directory(base);
        let sandbox = Sandbox::create(&store, dir, "root", base.clone());
        let (states, log) = (Vec::new(), Vec::new());
        let mut run = Run {
            seed,
            check_from,
            rng,
            sandbox,
            model,
            copies,
            ways,
            store,
            base,
            states,
            log,
        };
        for number in 1000..1000 + operations {
            run.step(number);
        }
        for State {
            frozen,
            number,
            space,
        } in run.states.clone()
        {
            run.log.push(format!("at the end {number}: {frozen}"));
            run.sandbox.rollback(&frozen);
            let wanted = scan(&run.copies.join(number.to_string()));
            run.check(&wanted, Some(&space), "at the end");
        }
    });
}

#[test]
fn random_operations_on_btrfs() {
    run(StoreKind::Btrfs, &[Way::Switch, Way::Snapshot]);
}

#[test]
fn random_operations_on_btrfs_by_switches() {
    run(StoreKind::Btrfs, &[Way::Switch]);
}

#[test]
fn random_operations_on_xfs() {
    run(StoreKind::Xfs, &[Way::Switch]);
}

#[test]
fn random_operations_on_ext4() {
    run(StoreKind::Ext4, &[Way::Switch]);
}
