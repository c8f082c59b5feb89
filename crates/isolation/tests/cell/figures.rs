//! Figures of a cell's life on this machine: printed (run with `--nocapture`), never judged.

use std::sync::Arc;
use std::time::{Duration, Instant};

use deltabox_isolation::{CellPool, ExitStatus, Limits, RootSpec};

use crate::support::{World, root_for, run, start, wait_for};

/// Prints the shortest, the median and the 95th percentile.
fn show(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    let (least, median, most) = (at(0.0), at(0.5), at(0.95));
    println!(
        "{what:<28} min {least:>7.3} ms   p50 {median:>7.3} ms   p95 {most:>7.3} ms   ({})",
        times.len()
    );
}

fn timed<T>(times: &mut Vec<Duration>, action: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = action();
    times.push(begun.elapsed());
    result
}

#[test]
fn figures() {
    const ROUNDS: usize = 30;
    let world = World::new();
    let [
        mut make,
        mut attach,
        mut first,
        mut exec,
        mut whole,
        mut switch,
        mut freeze,
        mut destroy,
    ] = std::array::from_fn(|_| Vec::new());
    for _ in 0..ROUNDS {
        let spec = world.spec(Limits::default());
        let cell = timed(&mut make, || world.spawner().cell(&spec)).unwrap();
        let root = root_for(cell.uid_base());
        timed(&mut attach, || cell.attach_root(root, RootSpec::default())).unwrap();
        timed(&mut first, || run(&cell, &["/bin/true"]));
        let (started, _output) = timed(&mut exec, || start(&cell, &["/bin/true"]));
        assert_eq!(wait_for(&cell, &started), ExitStatus::Code(0));
        assert_eq!(timed(&mut whole, || run(&cell, &["/bin/echo", "x"])).text, "x\n");
        let (_sleeper, _output) = start(&cell, &["/bin/sleep", "100"]);
        timed(&mut freeze, || cell.cgroup().freeze(Duration::from_secs(5))).unwrap();
        let next = root_for(cell.uid_base());
        let old = timed(&mut switch, || cell.switch_root(next)).unwrap();
        cell.cgroup().thaw().unwrap();
        timed(&mut destroy, || cell.destroy()).unwrap();
        drop(old);
    }
    show("make a cell", make);
    show("attach_root", attach);
    show("first command, to its end", first);
    show("exec (until the program)", exec);
    show("command, to its end", whole);
    show("freeze", freeze);
    show("switch_root", switch);
    show("destroy", destroy);
    let mut specs: Vec<_> = (0..72).map(|_| world.spec(Limits::default())).collect();
    let source = Box::new(move || {
        specs
            .pop()
            .ok_or_else(|| deltabox_isolation::Error::Invalid("enough".into()))
    });
    let pool = CellPool::new(Arc::clone(world.spawner()), 8, source).unwrap();
    pool.wait_full(Duration::from_secs(20));
    let mut take = Vec::new();
    let begun = Instant::now();
    let taken: Vec<_> = (0..64)
        .map(|_| timed(&mut take, || pool.take()).unwrap())
        .collect();
    println!(
        "64 cells from a pool of 8: {:.1} ms",
        begun.elapsed().as_secs_f64() * 1e3
    );
    show("take from the pool", take);
    drop(taken);
    drop(pool);
    let cells: Vec<_> = (0..20).map(|_| world.cell()).collect();
    let (mut private, mut pss) = (0, 0);
    for cell in &cells {
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", cell.init_pid())).unwrap();
        let field = |name: &str| -> u64 {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse().unwrap()
        };
        private += field("Private_Clean:") + field("Private_Dirty:");
        pss += field("Pss:");
    }
    println!(
        "idle init, of {}: private {} KiB, PSS {} KiB",
        cells.len(),
        private / 20,
        pss / 20
    );
}

#[test]
fn figures_of_freezing_and_of_many() {
    let world = World::new();
    let cell = world.cell();
    let (_spinners, _output) = start(
        &cell,
        &[
            "sh",
            "-c",
            "for i in 1 2 3 4 5 6 7 8; do (while :; do :; done) & done; wait",
        ],
    );
    crate::support::eventually("they spin", || cell.cgroup().procs().unwrap().len() >= 9);
    let mut freeze = Vec::new();
    for _ in 0..30 {
        std::thread::sleep(Duration::from_millis(20));
        timed(&mut freeze, || cell.cgroup().freeze(Duration::from_secs(5))).unwrap();
        cell.cgroup().thaw().unwrap();
    }
    show("freeze 8 spinning", freeze);
    drop(cell);
    let begun = Instant::now();
    let cells: Vec<_> = (0..200).map(|_| world.cell()).collect();
    println!(
        "200 cells, one after another: {:.2} s",
        begun.elapsed().as_secs_f64()
    );
    assert!(cells.iter().all(|cell| run(cell, &["echo", "x"]).text == "x\n"));
    println!(
        "... and a command in each: {:.2} s",
        begun.elapsed().as_secs_f64()
    );
    let slab = std::fs::read_to_string("/proc/meminfo").unwrap();
    let unreclaimable = |text: &str| -> u64 {
        let line = text.lines().find(|l| l.starts_with("MemAvailable:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let with = unreclaimable(&slab);
    let begun = Instant::now();
    drop(cells);
    println!("200 cells ended: {:.2} s", begun.elapsed().as_secs_f64());
    std::thread::sleep(Duration::from_millis(500));
    let without = unreclaimable(&std::fs::read_to_string("/proc/meminfo").unwrap());
    println!(
        "memory available came back by {} KiB per cell",
        without.saturating_sub(with) / 200
    );
}
