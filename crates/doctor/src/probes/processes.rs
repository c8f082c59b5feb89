//! The process half: looking into processes, stopping them, and making them anew.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use deltabox_sys::clone::ForkOptions;
use deltabox_sys::{kcmp as sys_kcmp, prctl, process_vm as vm, ptrace as pt, socket};
use rustix::fs::MemfdFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{PidfdGetfdFlags, getpid, pidfd_getfd as take};
use rustix::thread::UnshareFlags;

use super::{Doing, Step, all, ensure, failed};
use crate::child::{Child, PATIENCE, in_child};
use crate::report::Outcome;

/// Actions of seccomp(2).
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
/// An error that `getpgid` never returns by itself.
const TOKEN: i32 = libc::EHOSTUNREACH;

/// A filter that makes `getpgid` fail, so that its effect is seen.
fn install_filter() -> io::Result<()> {
    let instruction = |code, jt, jf, k| prctl::FilterInstruction { code, jt, jf, k };
    rustix::thread::set_no_new_privs(true)?;
    // Load the number of the call; if it is the one, fail; else allow.
    prctl::install_filter(&[
        instruction(0x20, 0, 0, 0),
        instruction(0x15, 0, 1, libc::SYS_getpgid as u32),
        instruction(0x06, 0, 0, ERRNO | TOKEN as u32),
        instruction(0x06, 0, 0, ALLOW),
    ])
}

fn filtered() -> bool {
    rustix::process::getpgid(None).is_err_and(|e| e.raw_os_error() == TOKEN)
}

pub(crate) fn seccomp(_: &Path) -> Outcome {
    all((|| {
        ensure(!filtered(), "the call fails without a filter")?;
        install_filter().doing("install a filter")?;
        ensure(filtered(), "the filter has no effect")?;
        Ok("a filter made a system call fail".into())
    })())
}

/// Waits for a tracee to stop.
fn stopped(child: &Child) -> Step {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = rustix::process::waitpid(Some(child.pid), pt::wait_options(true)).doing("wait")?;
        match status {
            Some((_, status)) if status.stopped() => return Ok(()),
            Some(_) => return Err("the child ended".into()),
            None if Instant::now() > deadline => return Err("the child did not stop".into()),
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

pub(crate) fn ptrace(_: &Path) -> Outcome {
    all((|| {
        let child = Child::idle().doing("make a child")?;
        pt::seize(child.pid, pt::Options::EXIT_KILL.with(pt::Options::SYSGOOD)).doing("seize")?;
        pt::interrupt(child.pid).doing("interrupt")?;
        stopped(&child)?;
        let regs = pt::get_regs(child.pid).doing("read registers")?;
        pt::set_regs(child.pid, &regs).doing("write registers")?;
        pt::get_sigmask(child.pid).doing("read the signal mask")?;
        pt::detach(child.pid, 0).doing("detach")?;
        Ok("a child was stopped, read and let go".into())
    })())
}

/// A call that the filter forbids succeeds while the filter is suspended.
pub(crate) fn suspend_seccomp(_: &Path) -> Outcome {
    all((|| {
        let (ready_r, ready_w) = rustix::pipe::pipe().doing("make a pipe")?;
        let (go_r, go_w) = rustix::pipe::pipe().doing("make a pipe")?;
        let child = Child::new(&ForkOptions::default(), || {
            install_filter()?;
            if !filtered() {
                return Err(failed("the filter has no effect"));
            }
            rustix::io::write(&ready_w, b"1")?;
            rustix::io::read(&go_r, &mut [0; 1])?;
            if filtered() {
                Err(io::Error::from_raw_os_error(TOKEN))
            } else {
                Ok(())
            }
        })
        .doing("make a child")?;
        drop(ready_w);
        ensure(
            rustix::io::read(&ready_r, &mut [0; 1]).doing("wait")? == 1,
            "the child could not install a filter",
        )?;
        let options = pt::Options::EXIT_KILL.with(pt::Options::SUSPEND_SECCOMP);
        pt::seize(child.pid, options).doing("seize with seccomp suspended")?;
        rustix::io::write(&go_w, b"1").doing("start the child")?;
        match child.result() {
            Err(e) if e.raw_os_error() == Some(TOKEN) => Err("the filter was not suspended".into()),
            other => other
                .doing("call past a suspended filter")
                .map(|()| "a suspended filter let a call pass".into()),
        }
    })())
}

/// Takes a descriptor out of a child and reads what only the child had.
pub(crate) fn pidfd_getfd(_: &Path) -> Outcome {
    all((|| {
        let (number_r, number_w) = rustix::pipe::pipe().doing("make a pipe")?;
        let child = Child::new(&ForkOptions::default(), || {
            let file = rustix::fs::memfd_create("doctor", MemfdFlags::CLOEXEC)?;
            rustix::io::write(&file, b"secret")?;
            rustix::io::write(&number_w, &file.as_raw_fd().to_le_bytes())?;
            loop {
                std::thread::sleep(PATIENCE);
            }
        })
        .doing("make a child")?;
        let mut number = [0; 4];
        ensure(
            rustix::io::read(&number_r, &mut number).doing("wait")? == 4,
            "the child failed",
        )?;
        let fd = take(&child.pidfd, i32::from_le_bytes(number), PidfdGetfdFlags::empty())
            .doing("take a descriptor")?;
        let mut text = [0; 6];
        rustix::io::pread(&fd, &mut text, 0).doing("read from it")?;
        ensure(&text == b"secret", "another file was taken")?;
        Ok("a descriptor was taken out of a child".into())
    })())
}

pub(crate) fn kcmp(_: &Path) -> Outcome {
    all((|| {
        let (a, b) = rustix::pipe::pipe().doing("make a pipe")?;
        let copy = rustix::io::dup(&a).doing("duplicate a descriptor")?;
        let child = Child::idle().doing("make a child")?;
        let compare = |x: i32, y: i32| sys_kcmp::descriptions(getpid(), x, child.pid, y).doing("compare");
        ensure(
            compare(copy.as_raw_fd(), a.as_raw_fd())?.is_eq(),
            "one description is told apart",
        )?;
        ensure(
            !compare(a.as_raw_fd(), b.as_raw_fd())?.is_eq(),
            "two descriptions are taken for one",
        )?;
        Ok("shared and separate descriptions were told apart".into())
    })())
}

pub(crate) fn process_vm(_: &Path) -> Outcome {
    all((|| {
        let memory = vec![7u8; 8192];
        let child = Child::idle().doing("make a child")?;
        let address = memory.as_ptr() as u64;
        let mut seen = vec![0u8; 8192];
        vm::read_exact(child.pid, address, &mut seen).doing("read a child's memory")?;
        ensure(seen == memory, "a child's memory reads differently")?;
        vm::write_exact(child.pid, address, b"changed").doing("write a child's memory")?;
        vm::read_exact(child.pid, address, &mut seen).doing("read a child's memory")?;
        ensure(
            seen.starts_with(b"changed") && memory[0] == 7,
            "a write went elsewhere",
        )?;
        Ok("a child's memory was read and written".into())
    })())
}

/// Runs `body` as the first process of a new PID namespace.
fn as_init(body: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let options = ForkOptions {
        namespaces: u64::from(UnshareFlags::NEWPID.bits()),
        ..ForkOptions::default()
    };
    in_child(&options, body)
}

fn has_pid(wanted: i32) -> io::Result<()> {
    let own = getpid().as_raw_nonzero().get();
    if own == wanted {
        Ok(())
    } else {
        Err(failed("another process id came"))
    }
}

pub(crate) fn set_tid(_: &Path) -> Outcome {
    const WANTED: i32 = 7777;
    let made = as_init(|| {
        let options = ForkOptions {
            pids: &[WANTED],
            ..ForkOptions::default()
        };
        in_child(&options, || has_pid(WANTED))
    });
    all(made
        .doing("make a process with a chosen id")
        .map(|()| format!("a child got the chosen id {WANTED}")))
}

pub(crate) fn ns_last_pid(_: &Path) -> Outcome {
    const LAST: i32 = 4241;
    let made = as_init(|| {
        fs::write("/proc/sys/kernel/ns_last_pid", LAST.to_string())?;
        in_child(&ForkOptions::default(), || has_pid(LAST + 1))
    });
    all(made
        .doing("choose the next id")
        .map(|()| format!("the next child got the id {}", LAST + 1)))
}

/// Enters repair mode on a socket of a private network and leaves it.
pub(crate) fn tcp_repair(_: &Path) -> Outcome {
    all((|| {
        deltabox_sys::clone::unshare_namespaces(UnshareFlags::NEWNET)
            .doing("unshare the network namespace")?;
        let flags = SocketFlags::CLOEXEC;
        let tcp = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)
            .doing("make a socket")?;
        let repair = |on: i32| socket::set_int_option(&tcp, libc::IPPROTO_TCP, libc::TCP_REPAIR, on);
        repair(1).doing("enter repair mode")?;
        // Send queue, whose sequence number can be set only in repair mode.
        socket::set_int_option(&tcp, libc::IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, 2).doing("choose a queue")?;
        socket::set_int_option(&tcp, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ, 12345)
            .doing("set a sequence number")?;
        repair(0).doing("leave repair mode")?;
        Ok("a socket was put into repair mode".into())
    })())
}

pub(crate) fn python(_: &Path) -> Outcome {
    let program = "import sys, unittest; print(sys.version.split()[0])";
    match Command::new("python3").args(["-c", program]).output() {
        Ok(output) if output.status.success() => Outcome::works(format!(
            "python {}",
            String::from_utf8_lossy(&output.stdout).trim()
        )),
        Ok(output) => Outcome::missing(format!("python3 failed ({})", output.status)),
        Err(error) => Outcome::missing(format!("python3 could not be started: {error}")),
    }
}
