//! The file half: checkpoint, rollback, history, size, copy-up, beside copying the directory.

use std::path::Path;
use std::process::Command;

use deltabox_api::Root;

use crate::client::{Client, Result};
use crate::daemon::Daemon;
use crate::sample::{Report, Samples};

/// Depth up to which history must not be felt.
const DEPTH: usize = 1000;

pub fn run(daemon: &Daemon, rounds: usize) -> Result<()> {
    let mut client = daemon.client()?;
    checkpoint_and_rollback(&mut client, rounds)?;
    history(&mut client)?;
    root_size(daemon, &mut client, rounds.min(100))?;
    copy_up(&mut client)
}

/// Writes a few files, as an agent's step does.
fn step(client: &mut Client, name: &str, i: usize) -> Result<()> {
    client
        .must(
            name,
            &format!("mkdir -p /w; for k in 1 2 3 4 5; do echo {i} > /w/f$k-$(({i} % 50)); done"),
        )
        .map(drop)
}

fn checkpoint_and_rollback(client: &mut Client, rounds: usize) -> Result<()> {
    let (mut checkpoints, mut rollbacks, mut unchanged) =
        (Samples::default(), Samples::default(), Samples::default());
    let (mut checkpoint_phases, mut rollback_phases) = (Vec::new(), Vec::new());
    client.create("files", Root::Host)?;
    let mut ids: Vec<String> = Vec::new();
    for i in 0..rounds {
        step(client, "files", i)?;
        let result = checkpoints.time(|| client.checkpoint("files"))?;
        checkpoint_phases.push(result.phases_ms);
        ids.push(result.id);
        unchanged.time(|| client.checkpoint("files"))?;
        step(client, "files", i + 7)?;
        let back = rollbacks.time(|| client.rollback("files", &ids[(i * 7919) % ids.len()]))?;
        rollback_phases.push(back.phases_ms);
    }
    client.remove("files")?;
    let mut report = Report::default();
    report.add("checkpoint, 5 files changed", checkpoints);
    report.add_phases("checkpoint", &checkpoint_phases);
    report.add("checkpoint, nothing changed", unchanged);
    report.add("rollback to any checkpoint", rollbacks);
    report.add_phases("rollback", &rollback_phases);
    report.print("Files: checkpoint and rollback of a sandbox without processes");
    Ok(())
}

fn history(client: &mut Client) -> Result<()> {
    let (mut checkpoints, mut creates) = (Samples::default(), Samples::default());
    client.create("deep", Root::Host)?;
    let creation = "import os,time\nos.makedirs('/w',exist_ok=True)\nt=time.perf_counter()\n\
        for k in range(20): open(f'/w/n{time.monotonic_ns()}','w').close()\nprint((time.perf_counter()-t)*1e3)";
    for _ in 0..DEPTH {
        let out = client.exec(
            "deep",
            deltabox_api::ExecRequest {
                argv: ["/usr/bin/python3", "-S", "-c", creation]
                    .map(String::from)
                    .to_vec(),
                ..Default::default()
            },
        )?;
        creates.push(
            out.stdout
                .trim()
                .parse()
                .map_err(|_| format!("python3 in the sandbox: {}", out.stderr))?,
        );
        checkpoints.time(|| client.checkpoint("deep"))?;
    }
    client.remove("deep")?;
    let mut report = Report::default();
    for (name, samples) in [("checkpoint", &checkpoints), ("creating 20 files", &creates)] {
        report.add(format!("{name}, depth 1-100"), samples.slice(0..100));
        report.add(
            format!("{name}, depth {}-{DEPTH}", DEPTH - 100),
            samples.slice(DEPTH - 100..DEPTH),
        );
    }
    report.print("Files: a history of 1,000 checkpoints");
    Ok(())
}

fn make_root(parent: &Path, files: usize) -> Result<std::path::PathBuf> {
    let root = parent.join(format!("root-{files}"));
    for directory in ["bin", "lib", "lib64", "usr", "etc", "tmp"] {
        std::fs::create_dir_all(root.join(directory))?;
    }
    Command::new("cp")
        .args(["-L", "/bin/sh"])
        .arg(root.join("bin/sh"))
        .status()?;
    let libraries = Command::new("ldd").arg("/bin/sh").output()?.stdout;
    for library in String::from_utf8_lossy(&libraries)
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let target = root.join(library.trim_start_matches('/'));
        std::fs::create_dir_all(target.parent().ok_or("a library without a directory")?)?;
        std::fs::copy(library, target)?;
    }
    for i in 0..files {
        let directory = root.join(format!("usr/d{}", i / 100));
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join(format!("f{i}")), format!("file {i}\n"))?;
    }
    Ok(root)
}

fn root_size(daemon: &Daemon, client: &mut Client, rounds: usize) -> Result<()> {
    let mut report = Report::default();
    for files in [100, 100_000] {
        let root = make_root(daemon.home(), files)?;
        let name = format!("root{files}");
        let (mut creates, mut checkpoints, mut rollbacks, mut copies) = Default::default();
        Samples::time(&mut creates, || {
            client.create(
                &name,
                Root::Directory {
                    path: root.to_string_lossy().into_owned(),
                },
            )
        })?;
        for i in 0..rounds {
            client.must(&name, &format!("echo {i} > /tmp/x{i}"))?;
            let made = Samples::time(&mut checkpoints, || client.checkpoint(&name))?;
            client.must(&name, "echo more > /tmp/y")?;
            Samples::time(&mut rollbacks, || client.rollback(&name, &made.id))?;
        }
        client.remove(&name)?;
        let copy = daemon.home().join("copy");
        for _ in 0..3 {
            Samples::time(&mut copies, || {
                Command::new("cp").arg("-a").arg(&root).arg(&copy).status()
            })?;
            std::fs::remove_dir_all(&copy)?;
        }
        std::fs::remove_dir_all(&root)?;
        report.add(format!("create, root of {files} files"), creates);
        report.add(format!("checkpoint, root of {files} files"), checkpoints);
        report.add(format!("rollback, root of {files} files"), rollbacks);
        report.add(format!("baseline: cp -a of the {files} files"), copies);
    }
    report.print("Files: size of the root");
    Ok(())
}

/// What the first write to a large file of a frozen layer costs the program.
fn copy_up(client: &mut Client) -> Result<()> {
    let mut opens = Samples::default();
    client.create("large", Root::Host)?;
    client.must("large", "head -c 268435456 /dev/urandom > /large")?;
    let script = "import os,time\nt=time.perf_counter()\nf=os.open('/large',os.O_RDWR)\nprint((time.perf_counter()-t)*1e3)\nos.pwrite(f,b'x',4096)";
    for _ in 0..20 {
        client.checkpoint("large")?;
        let argv = ["/usr/bin/python3", "-S", "-c", script]
            .map(String::from)
            .to_vec();
        let out = client.exec(
            "large",
            deltabox_api::ExecRequest {
                argv,
                ..Default::default()
            },
        )?;
        opens.push(
            out.stdout
                .trim()
                .parse()
                .map_err(|_| format!("python3 in the sandbox: {}", out.stderr))?,
        );
    }
    client.remove("large")?;
    let mut report = Report::default();
    report.add("open of a 256 MB file for writing after a checkpoint", opens);
    report.print("Files: copy-up");
    Ok(())
}
