//! Random operations, freezes, rollbacks and squashes, compared with a plain directory.
//!
//! `DELTABOX_SEED` repeats a run, `DELTABOX_OPERATIONS` sets its length (10,000 for the long one).

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use deltabox_layers::{Base, Frozen, StoreKind, Way};
use support::ops::Op;
use support::rng::Rng;
use support::scan::{Scan, compare, scan};
use support::{Sandbox, isolated, open};

struct Run {
    seed: u64,
    rng: Rng,
    sandbox: Sandbox,
    model: PathBuf,
    copies: PathBuf,
    ways: &'static [Way],
    /// Each with the number of its copy of the model.
    states: Vec<(Frozen, usize)>,
    log: Vec<String>,
}

impl Run {
    fn operation(&mut self, number: u64) {
        let op = random_op(&mut self.rng, &self.model);
        let wanted = op.apply(&self.model, number);
        let seen = op.apply(&self.sandbox.root, number);
        self.log
            .push(format!("{number}: {:.200} -> {wanted:?}", format!("{op:?}")));
        if seen != wanted {
            self.fail(&format!("the result is {seen:?} instead of {wanted:?}"));
        }
    }

    fn check(&mut self, wanted: &Scan, what: &str) {
        let differences = compare(&scan(&self.sandbox.root), wanted);
        if !differences.is_empty() {
            self.fail(&format!("{what}:\n{}", differences.join("\n")));
        }
    }

    fn checkpoint(&mut self) {
        let way = *self.rng.pick(self.ways);
        let frozen = self.sandbox.freeze(way);
        let number = self.states.len();
        self.log.push(format!("freeze {number}: {way:?} {frozen}"));
        copy(&self.model, &self.copies.join(number.to_string()));
        self.states.push((frozen, number));
        let wanted = scan(&self.model);
        self.check(&wanted, "after a freeze");
    }

    fn rollback(&mut self) {
        if self.states.is_empty() {
            return;
        }
        let (frozen, number) = *self.rng.pick(&self.states);
        self.log.push(format!("rollback {number}: {frozen}"));
        self.sandbox.rollback(&frozen);
        fs::remove_dir_all(&self.model).unwrap();
        copy(&self.copies.join(number.to_string()), &self.model);
        let wanted = scan(&self.model);
        self.check(&wanted, "after a rollback");
    }

    fn step(&mut self, number: u64) {
        self.operation(number);
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
            10 => {
                let wanted = scan(&self.model);
                self.check(&wanted, "while running");
            }
            _ => {}
        }
    }

    fn fail(&self, why: &str) -> ! {
        if std::env::var("DEBUG_KEEP").is_ok() {
            let out = Command::new("sh")
                .arg("-c")
                .arg(std::env::var("DEBUG_KEEP").unwrap())
                .current_dir(self.model.parent().unwrap())
                .output()
                .unwrap();
            println!(
                "{}{}",
                String::from_utf8_lossy(&out.stdout),
                String::from_utf8_lossy(&out.stderr)
            );
        }
        let start = self.log.len().saturating_sub(60);
        panic!(
            "seed {}: {why}\nlast steps:\n{}",
            self.seed,
            self.log[start..].join("\n")
        );
    }
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
        let sandbox = Sandbox::create(&store, dir, "root", Base::directory(base));
        let mut run = Run {
            seed,
            rng,
            sandbox,
            model,
            copies,
            ways,
            states: Vec::new(),
            log: Vec::new(),
        };
        for number in 1000..1000 + operations {
            run.step(number);
        }
        for (frozen, number) in run.states.clone() {
            run.log.push(format!("at the end {number}: {frozen}"));
            run.sandbox.rollback(&frozen);
            let wanted = scan(&run.copies.join(number.to_string()));
            run.check(&wanted, "at the end");
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
