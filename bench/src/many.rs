//! Creation and life of many sandboxes.

use deltabox_api::Root;

use crate::client::Result;
use crate::daemon::Daemon;
use crate::sample::{Report, Samples};

/// Sandboxes alive side by side.
const MANY: usize = 200;

pub fn run(daemon: &Daemon, rounds: usize) -> Result<()> {
    let mut client = daemon.client()?;
    let (mut creates, mut firsts, mut commands, mut removes, mut plain) = Default::default();
    for i in 0..rounds.min(100) {
        let name = format!("c{i}");
        Samples::time(&mut firsts, || {
            Samples::time(&mut creates, || client.create(&name, Root::Host))?;
            client.must(&name, "echo hello")
        })?;
        Samples::time(&mut commands, || client.must(&name, "echo hello"))?;
        Samples::time(&mut removes, || client.remove(&name))?;
        Samples::time(&mut plain, || {
            std::process::Command::new("/bin/sh")
                .args(["-c", "echo hello"])
                .output()
        })?;
    }
    let before = memory_available_bytes()?;
    for i in 0..MANY {
        client.create(&format!("m{i}"), Root::Host)?;
    }
    for i in 0..MANY {
        client.must(&format!("m{i}"), "echo alive > /tmp/alive && cat /tmp/alive")?;
    }
    let after = memory_available_bytes()?;
    let init = client
        .get::<deltabox_api::SandboxInfo>("/sandboxes/m0")?
        .init_pid
        .ok_or("no init")?;
    let (private, shared) = memory_of(init)?;
    let (daemon_private, _) = memory_of(daemon.pid() as i32)?;
    for i in 0..MANY {
        client.remove(&format!("m{i}"))?;
    }
    let mut report = Report::default();
    report.add("create", creates);
    report.add("create to the first command's output", firsts);
    report.add("a further command", commands);
    report.add("baseline: the command on the host", plain);
    report.add("remove", removes);
    report.note(format!(
        "{MANY} sandboxes alive, each answering: {:.0} KiB of memory per sandbox in all (MemAvailable); init of one: \
         {private} KiB private, {shared} KiB shared; daemon: {daemon_private} KiB private.",
        before.saturating_sub(after) as f64 / 1024.0 / MANY as f64
    ));
    report.print("Creation, and many sandboxes side by side");
    Ok(())
}

fn memory_available_bytes() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text
        .lines()
        .find(|line| line.starts_with("MemAvailable:"))
        .ok_or("no MemAvailable")?;
    Ok(line.split_whitespace().nth(1).ok_or("no value")?.parse::<u64>()? * 1024)
}

/// Private and shared resident memory of a process in KiB.
pub fn memory_of(pid: i32) -> Result<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let sum = |prefix: &str| -> u64 {
        let lines = text.lines().filter(|line| line.starts_with(prefix));
        lines
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum()
    };
    Ok((sum("Private_"), sum("Shared_")))
}
