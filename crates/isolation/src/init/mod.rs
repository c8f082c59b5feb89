//! PID 1 of a cell. Single-threaded, a fork of the spawner without exec, so its private memory is tiny.
//!
//! One loop waits for orders, for children, and for commands that are still between clone and exec (they may be held
//! up: by a frozen cgroup or by an exhausted memory limit, which must not keep init from serving).

mod children;
mod command;
mod furniture;
mod root;

use std::os::fd::{AsFd, OwnedFd};

use deltabox_sys::clone::{
    ForkOptions, Forked, SingleThreaded, child_signal_fd, exit_now, fork, unshare_namespaces,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{
    DumpableBehavior, Signal, set_dumpable_behavior, set_parent_process_death_signal, setsid,
};
use rustix::thread::{Gid, Uid, UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::error::{Context, Failure};
use crate::protocol::{Answer, Order, Reply, Request, Step};
use crate::seccomp::Filter;
use crate::wire::Channel;
use children::Children;
use command::{StartReport, Starting};
use furniture::Furniture;
use root::Root;

/// Init's program. Returns the exit status, when the owner has closed its socket.
pub(crate) fn main(
    proof: SingleThreaded,
    requests: Channel,
    events: Channel,
    run: OwnedFd,
    filter: Filter,
    oom_score_adj: Option<i32>,
) -> i32 {
    let Ok(signals) = child_signal_fd() else {
        return 3;
    };
    let mut init = Init {
        proof,
        requests,
        signals,
        children: Children::new(events),
        run,
        filter,
        oom_score_adj,
        furniture: None,
        root: Root::default(),
        starting: Vec::new(),
    };
    init.serve()
}

pub(crate) struct Init {
    proof: SingleThreaded,
    requests: Channel,
    signals: OwnedFd,
    children: Children,
    run: OwnedFd,
    filter: Filter,
    oom_score_adj: Option<i32>,
    furniture: Option<Furniture>,
    root: Root,
    starting: Vec<Starting>,
}

/// An answer and the descriptors that go with it; `None` if it comes later.
type Outcome = Result<Option<(Answer, Vec<OwnedFd>)>, Failure>;

const DONE: Outcome = Ok(Some((Answer::Done, Vec::new())));

impl Init {
    fn serve(&mut self) -> i32 {
        loop {
            let mut ready = vec![
                PollFd::new(&self.requests, PollFlags::IN),
                PollFd::new(&self.signals, PollFlags::IN),
            ];
            ready.push(PollFd::new(self.children.events(), self.children.interest()));
            ready.extend(
                self.starting
                    .iter()
                    .map(|s| PollFd::new(&s.report, PollFlags::IN)),
            );
            match poll(&mut ready, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return 1,
            }
            let fired: Vec<bool> = ready.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(ready);
            // Reports before children: the owner learns of the start before it learns of the end.
            if fired[3..].contains(&true) && self.finish_starts(&fired[3..]).is_err() {
                return 0;
            }
            if fired[1] {
                self.children.drain(&self.signals);
            }
            if fired[0] {
                match self.requests.receive::<Request>() {
                    Ok(Some((request, fds))) => {
                        if self.answer(request, fds).is_err() {
                            return 0;
                        }
                    }
                    Ok(None) => return 0,
                    Err(_) => return 1,
                }
            }
            self.reap();
            self.children.flush();
        }
    }

    /// A start that is not reported yet must not be reaped: its report would name a PID that may be reused.
    fn reap(&mut self) {
        let unreported: Vec<i32> = self.starting.iter().map(|starting| starting.pid).collect();
        self.children.reap(
            self.furniture.as_ref().map(|furniture| &furniture.proc),
            &unreported,
        );
    }

    fn answer(&mut self, request: Request, fds: Vec<OwnedFd>) -> std::io::Result<()> {
        let drop_old_root = matches!(request.order, Order::DropOldRoot);
        let id = request.id;
        let outcome = self.execute(id, request.order, fds);
        match outcome {
            Ok(None) => Ok(()),
            Ok(Some((answer, fds))) => {
                let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                self.requests.send(&Reply { id, answer }, &fds)?;
                if drop_old_root {
                    self.root.drop_old();
                }
                Ok(())
            }
            Err(failure) => self.requests.send(
                &Reply {
                    id,
                    answer: Answer::Failed(failure),
                },
                &[],
            ),
        }
    }

    fn execute(&mut self, id: u64, order: Order, mut fds: Vec<OwnedFd>) -> Outcome {
        match order {
            Order::Boot => self.boot().and(DONE),
            Order::Root { hostname, binds } => {
                let furniture = self
                    .furniture
                    .as_ref()
                    .ok_or_else(|| refusal("attach a root before booting"))?;
                if fds.is_empty() {
                    return Err(refusal("attach a root without its mount"));
                }
                let mount = fds.remove(0);
                // First, because a name can be refused, and a root that is attached is not taken away again.
                if let Some(name) = hostname {
                    rustix::system::sethostname(name.as_bytes()).inside("set the hostname")?;
                }
                match binds {
                    Some(targets) => self.root.attach(furniture, mount, targets, fds)?,
                    None => self.root.switch(furniture, mount)?,
                }
                DONE
            }
            Order::DropOldRoot => DONE,
            Order::Exec(command) => self.exec(id, &command, fds),
            Order::Skeleton { pid, confine } => self.skeleton(pid, confine),
            Order::SetLastPid(last) => self.set_last_pid(last).and(DONE),
            Order::KillAll => kill_others().and(DONE),
            Order::CountChildren => {
                self.reap();
                let proc = self.furniture.as_ref().map(|furniture| &furniture.proc);
                Ok(Some((Answer::Children(self.children.count(proc)), Vec::new())))
            }
            Order::Signal { pid, group, signal } => send_signal(pid, group, signal).and(DONE),
            Order::HoldZombie { pid, hold } => {
                self.children.hold(pid, hold);
                DONE
            }
            Order::OwnTime => {
                unshare_namespaces(UnshareFlags::NEWTIME).inside("make a time namespace")?;
                DONE
            }
            Order::Hostname(name) => {
                rustix::system::sethostname(name.as_bytes()).inside("set the hostname")?;
                DONE
            }
            Order::Ping => DONE,
        }
    }

    /// Takes on the mapped identity and makes the namespaces habitable.
    fn boot(&mut self) -> Result<(), Failure> {
        set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).inside("become the cell's root")?;
        set_thread_groups(&[]).inside("leave all groups")?;
        set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).inside("become the cell's root")?;
        // A change of identity resets both of these.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).inside("become undumpable")?;
        set_parent_process_death_signal(Some(Signal::KILL)).inside("die with the spawner")?;
        rustix::thread::set_name(c"init").inside("set the name of init")?;
        setsid().inside("make a session")?;
        // Now, while in the cell's own cgroups, so that these become the roots that programs see.
        unshare_namespaces(UnshareFlags::NEWCGROUP).inside("make a cgroup namespace")?;
        rustix::system::sethostname(b"sandbox").inside("set the hostname")?;
        crate::netlink::loopback_up().inside("bring the loopback interface up")?;
        self.furniture = Some(Furniture::make()?);
        Ok(())
    }

    fn exec(&mut self, id: u64, command: &crate::protocol::Command, fds: Vec<OwnedFd>) -> Outcome {
        let furniture = self
            .furniture
            .as_ref()
            .ok_or_else(|| refusal("run a command before booting"))?;
        if !self.root.is_attached() {
            return Err(refusal("run a command before a root is attached"));
        }
        let start = self.children.next_start();
        match command::start(self, furniture, id, start, command, fds)? {
            Ok(starting) => {
                self.children.started(starting.pid, start);
                self.starting.push(starting);
                Ok(None)
            }
            Err(errno) => Ok(Some((
                Answer::NotStarted {
                    step: Step::Fork,
                    errno,
                },
                Vec::new(),
            ))),
        }
    }

    /// Sends the answers of commands that reached their program, or failed to.
    fn finish_starts(&mut self, fired: &[bool]) -> std::io::Result<()> {
        let mut index = 0;
        let mut finished = Vec::new();
        self.starting.retain_mut(|starting| {
            let report = if fired.get(index).copied().unwrap_or(false) {
                starting.read()
            } else {
                None
            };
            index += 1;
            match report {
                None => true,
                Some(report) => {
                    finished.push((
                        starting.id,
                        starting.pid,
                        starting.start,
                        report,
                        starting.take_fds(),
                    ));
                    false
                }
            }
        });
        for (id, pid, start, report, fds) in finished {
            let (answer, fds) = match report {
                StartReport::Running => (Answer::Started { pid, start }, fds),
                StartReport::Failed { step, errno } => {
                    self.children.forget(pid);
                    (Answer::NotStarted { step, errno }, Vec::new())
                }
            };
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            self.requests.send(&Reply { id, answer }, &fds)?;
        }
        Ok(())
    }

    /// Clones a child that closes everything and stops itself.
    fn skeleton(&mut self, pid: Option<i32>, confine: bool) -> Outcome {
        let pids: Vec<i32> = pid.into_iter().collect();
        let options = ForkOptions {
            namespaces: 0,
            cgroup: Some(self.run.as_fd()),
            pids: &pids,
        };
        match fork(&self.proof, &options) {
            Ok(Forked::Child) => exit_now(command::be_skeleton(&self.proof, confine, &self.filter)),
            Ok(Forked::Parent { pid, pidfd }) => {
                let start = self.children.next_start();
                self.children.started(pid, start);
                Ok(Some((Answer::Started { pid, start }, vec![pidfd])))
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                Ok(Some((
                    Answer::NotStarted {
                        step: Step::Fork,
                        errno,
                    },
                    Vec::new(),
                )))
            }
        }
    }

    fn set_last_pid(&self, last: i32) -> Result<(), Failure> {
        let furniture = self
            .furniture
            .as_ref()
            .ok_or_else(|| refusal("set the last pid before booting"))?;
        rustix::io::pwrite(&furniture.last_pid, last.to_string().as_bytes(), 0)
            .inside("write ns_last_pid")?;
        Ok(())
    }
}

/// Kills every process of the PID namespace but this one (man 2 kill, pid -1). One pass is enough: the kernel holds
/// the lock that a fork needs to finish, and a fork with a fatal signal pending fails.
fn kill_others() -> Result<(), Failure> {
    match deltabox_sys::clone::send_signal(-1, libc::SIGKILL) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(error).inside("kill all processes"),
        _ => Ok(()),
    }
}

/// Only to others than init and the groups of others.
fn send_signal(pid: i32, group: bool, signal: i32) -> Result<(), Failure> {
    let what = format!("send signal {signal} to {pid}");
    if pid <= 1 {
        return Err(Failure {
            what,
            errno: libc::EINVAL,
        });
    }
    deltabox_sys::clone::send_signal(if group { -pid } else { pid }, signal).inside(what)
}

/// An order that makes no sense at this point.
fn refusal(what: &str) -> Failure {
    Failure {
        what: what.to_owned(),
        errno: libc::EINVAL,
    }
}
