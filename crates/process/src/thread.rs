//! What a thread has besides memory: CPU state, signal state, and what it told the kernel about itself.

use deltabox_sys::attributes;
use deltabox_sys::ptrace::{RawSiginfo, SIGINFO_SIZE, UserRegs};
use serde::{Deserialize, Serialize};

use crate::error::TraceError;
use crate::ids::{Addr, HostPid, InsidePid};
use crate::inject::{Arg, Batch, Buffer, CallId};
use crate::stop::Process;
use crate::timer::PosixTimer;

/// The general registers, in the order of `struct user_regs_struct`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers(pub [u64; 27]);

impl From<&UserRegs> for Registers {
    fn from(regs: &UserRegs) -> Registers {
        let r = regs;
        Registers([
            r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8, r.rax, r.rcx, r.rdx, r.rsi,
            r.rdi, r.orig_rax, r.rip, r.cs, r.eflags, r.rsp, r.ss, r.fs_base, r.gs_base, r.ds, r.es, r.fs,
            r.gs,
        ])
    }
}

/// Where the number of the system call is.
const CALL: usize = 15;

impl Registers {
    /// A call that has been interrupted and restarted goes by the number of `restart_syscall`. If all else shows that it
    /// is the one of `before`, it has this one's.
    pub fn take_restarted_call(&mut self, before: &Registers) {
        if self.0[CALL] == libc::SYS_restart_syscall.cast_unsigned() {
            self.0[CALL] = before.0[CALL];
        }
    }

    /// Writes the registers into `regs`.
    pub fn apply(&self, regs: &mut UserRegs) {
        [
            regs.r15,
            regs.r14,
            regs.r13,
            regs.r12,
            regs.rbp,
            regs.rbx,
            regs.r11,
            regs.r10,
            regs.r9,
            regs.r8,
            regs.rax,
            regs.rcx,
            regs.rdx,
            regs.rsi,
            regs.rdi,
            regs.orig_rax,
            regs.rip,
            regs.cs,
            regs.eflags,
            regs.rsp,
            regs.ss,
            regs.fs_base,
            regs.gs_base,
            regs.ds,
            regs.es,
            regs.fs,
            regs.gs,
        ] = self.0;
    }
}

/// A pending signal as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal(Vec<u8>);

impl From<&RawSiginfo> for Signal {
    fn from(raw: &RawSiginfo) -> Signal {
        Signal(raw.to_vec())
    }
}

impl Signal {
    /// The signal's number.
    #[must_use]
    pub fn number(&self) -> i32 {
        self.0.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes))
    }

    /// The kernel's form.
    #[must_use]
    pub fn raw(&self) -> RawSiginfo {
        let mut raw = [0; SIGINFO_SIZE];
        let length = self.0.len().min(SIGINFO_SIZE);
        raw[..length].copy_from_slice(&self.0[..length]);
        raw
    }
}

/// A thread as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadImage {
    /// Its id.
    pub tid: InsidePid,
    /// General registers.
    pub registers: Registers,
    /// Extended CPU state in XSAVE layout.
    pub xstate: Vec<u8>,
    /// Blocked signals.
    pub sigmask: u64,
    /// Signals pending for the thread alone, oldest first.
    pub pending: Vec<Signal>,
    /// Restartable sequences: address, size, signature.
    pub rseq: (Addr, u32, u32),
    /// Where the kernel writes 0 when the thread ends.
    pub clear_child_tid: Addr,
    /// Alternate signal stack (`stack_t`).
    pub altstack: Vec<u8>,
    /// Robust futex list: head and length.
    pub robust_list: (u64, u64),
    /// Name.
    pub name: Vec<u8>,
    /// Signal on the parent's death.
    pub parent_death_signal: i32,
    /// Timer slack in nanoseconds.
    pub timer_slack: u64,
    /// How it is scheduled.
    pub scheduling: Scheduling,
}

const NAME_SIZE: usize = 16;
const ALTSTACK_SIZE: usize = 24;

/// The questions put to a thread, and where the answers will be.
pub(crate) struct Questions {
    tid_address: Buffer,
    altstack: Buffer,
    robust_head: Buffer,
    robust_length: Buffer,
    name: Buffer,
    death_signal: Buffer,
    slack: CallId,
}

/// Adds the questions to a batch.
pub(crate) fn ask(batch: &mut Batch) -> Questions {
    let tid_address = batch.output(8);
    batch.call(
        libc::SYS_prctl,
        &[libc::PR_GET_TID_ADDRESS.into(), tid_address.into()],
    );
    let altstack = batch.output(ALTSTACK_SIZE);
    batch.call(libc::SYS_sigaltstack, &[0.into(), altstack.into()]);
    let (robust_head, robust_length) = (batch.output(8), batch.output(8));
    batch.call(
        libc::SYS_get_robust_list,
        &[0.into(), robust_head.into(), robust_length.into()],
    );
    let name = batch.output(NAME_SIZE);
    batch.call(libc::SYS_prctl, &[libc::PR_GET_NAME.into(), name.into()]);
    let death_signal = batch.output(4);
    batch.call(
        libc::SYS_prctl,
        &[libc::PR_GET_PDEATHSIG.into(), death_signal.into()],
    );
    let slack = batch.call(libc::SYS_prctl, &[libc::PR_GET_TIMERSLACK.into()]);
    Questions {
        tid_address,
        altstack,
        robust_head,
        robust_length,
        name,
        death_signal,
        slack,
    }
}

pub(crate) fn word(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

/// The thread at `place` of a stopped process, in which the batch has been run.
pub(crate) fn answers(
    process: &mut Process,
    place: usize,
    batch: &Batch,
    asked: &Questions,
) -> Result<ThreadImage, TraceError> {
    let thread = &mut process.threads[place];
    let tid = thread.inside;
    let xstate = thread.tracee.xstate()?;
    let mut context = thread.tracee.context()?.clone();
    name_restarted_call(process, &mut context.regs);
    Ok(ThreadImage {
        tid,
        registers: Registers::from(&context.regs),
        xstate,
        sigmask: context.sigmask,
        pending: context.pending.iter().map(Signal::from).collect(),
        rseq: (
            Addr(context.rseq.address),
            context.rseq.size,
            context.rseq.signature,
        ),
        clear_child_tid: Addr(word(batch.bytes(asked.tid_address))),
        altstack: batch.bytes(asked.altstack).to_vec(),
        robust_list: (
            word(batch.bytes(asked.robust_head)),
            word(batch.bytes(asked.robust_length)),
        ),
        name: batch.bytes(asked.name).to_vec(),
        parent_death_signal: batch
            .bytes(asked.death_signal)
            .first()
            .copied()
            .map_or(0, i32::from),
        timer_slack: batch.result(asked.slack).unwrap_or(0),
        scheduling: Scheduling::of(process.threads[place].tracee.tid())?,
    })
}

/// How a thread is scheduled, as it can be seen and set from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduling {
    /// CPU affinity mask.
    pub affinity: Vec<u8>,
    /// Policy and nice value (`struct sched_attr`, first version).
    pub attributes: Vec<u8>,
    /// Class and priority of input and output (`ioprio_get(2)`).
    pub io_priority: i32,
}

impl Scheduling {
    pub(crate) fn of(tid: HostPid) -> Result<Scheduling, TraceError> {
        let read = || -> std::io::Result<Scheduling> {
            Ok(Scheduling {
                affinity: attributes::affinity(tid.pid())?,
                attributes: attributes::scheduling(tid.pid())?,
                io_priority: attributes::io_priority(tid.pid())?,
            })
        };
        read().map_err(|source| TraceError::Request {
            tid,
            what: "look at the scheduling of",
            source,
        })
    }

    fn restore(&self, tid: HostPid) -> Result<(), TraceError> {
        let now = Scheduling::of(tid)?;
        let set = || -> std::io::Result<()> {
            if now.affinity != self.affinity {
                attributes::set_affinity(tid.pid(), &self.affinity)?;
            }
            if now.attributes != self.attributes {
                attributes::set_scheduling(tid.pid(), &self.attributes)?;
            }
            if now.io_priority != self.io_priority {
                attributes::set_io_priority(tid.pid(), self.io_priority)?;
            }
            Ok(())
        };
        set().map_err(|source| TraceError::Request {
            tid,
            what: "set the scheduling of",
            source,
        })
    }
}

/// Takes back the registrations of restartable sequences that `images` do not have. The kernel writes into the area
/// it lets go (rseq(2)), so this comes before the memory is restored: what it wrote is then put right with the rest.
pub fn release_rseq(process: &mut Process, images: &[ThreadImage]) -> Result<(), TraceError> {
    const UNREGISTER: u64 = 1;
    for place in 0..process.threads.len() {
        let thread = &mut process.threads[place];
        let Some(image) = images.iter().find(|image| image.tid == thread.inside) else {
            continue;
        };
        let rseq = &thread.tracee.context()?.rseq;
        let (address, size, signature) = (Addr(rseq.address), rseq.size, rseq.signature);
        if address.is_null() || (address, size, signature) == image.rseq {
            continue;
        }
        let mut batch = Batch::new();
        batch.call(
            libc::SYS_rseq,
            &[address.into(), size.into(), UNREGISTER.into(), signature.into()],
        );
        process.run_in(place, &mut batch)?;
        process.threads[place].tracee.context_mut()?.rseq.address = 0;
    }
    Ok(())
}

/// Makes the thread at `place` what `image` says. Its memory must have been restored before.
/// What `timers` send, they send themselves.
pub fn restore(
    process: &mut Process,
    place: usize,
    image: &ThreadImage,
    timers: &[PosixTimer],
) -> Result<(), TraceError> {
    let pid = process.inside();
    let thread = &mut process.threads[place];
    let context = thread.tracee.context()?.clone();
    let mut batch = Batch::new();
    drain(&mut batch, context.pending.len());
    set_up(&mut batch, image);
    let rseq = Addr(context.rseq.address);
    let (address, size, signature) = image.rseq;
    if (rseq, context.rseq.size, context.rseq.signature) != image.rseq && !address.is_null() {
        batch.call(
            libc::SYS_rseq,
            &[address.into(), size.into(), 0.into(), signature.into()],
        );
    }
    if image
        .pending
        .iter()
        .any(|signal| signal.number() == libc::SIGTRAP)
    {
        thread.tracee.block_traps()?;
    }
    let queued = |signal: &&Signal| !timers.iter().any(|timer| timer.sends(signal));
    for signal in image.pending.iter().filter(queued) {
        let info = batch.input(&signal.raw());
        let args: [Arg; 4] = [
            pid.0.into(),
            image.tid.0.into(),
            signal.number().into(),
            info.into(),
        ];
        batch.call(libc::SYS_rt_tgsigqueueinfo, &args);
    }
    process.run_in(place, &mut batch)?;
    let tracee = &mut process.threads[place].tracee;
    image.scheduling.restore(tracee.tid())?;
    tracee.set_pending(
        image.pending.iter().map(Signal::raw).collect(),
        context.process_pending,
    );
    tracee.set_xstate(&image.xstate)?;
    let mut regs = context.regs;
    image.registers.apply(&mut regs);
    restart(&mut regs);
    tracee.set_program(regs, image.sigmask)
}

/// Takes `count` pending signals away.
pub(crate) fn drain(batch: &mut Batch, count: usize) {
    if count == 0 {
        return;
    }
    let all = batch.input(&u64::MAX.to_ne_bytes());
    let now = batch.input(&[0; 16]);
    for _ in 0..count {
        batch.call(
            libc::SYS_rt_sigtimedwait,
            &[all.into(), 0.into(), now.into(), 8.into()],
        );
    }
}

fn set_up(batch: &mut Batch, image: &ThreadImage) {
    batch.call(libc::SYS_set_tid_address, &[image.clear_child_tid.into()]);
    let altstack = batch.input(&image.altstack);
    batch.call(libc::SYS_sigaltstack, &[altstack.into(), 0.into()]);
    batch.call(
        libc::SYS_set_robust_list,
        &[image.robust_list.0.into(), image.robust_list.1.into()],
    );
    let name = batch.input(&image.name);
    batch.call(libc::SYS_prctl, &[libc::PR_SET_NAME.into(), name.into()]);
    batch.call(
        libc::SYS_prctl,
        &[libc::PR_SET_PDEATHSIG.into(), image.parent_death_signal.into()],
    );
    batch.call(
        libc::SYS_prctl,
        &[libc::PR_SET_TIMERSLACK.into(), image.timer_slack.into()],
    );
}

/// The registers of a thread that was interrupted in a system call which it would make again, the call being named.
pub(crate) fn interrupted_call(process: &Process, regs: &UserRegs) -> Option<UserRegs> {
    /// `ERESTARTSYS` to `ERESTART_RESTARTBLOCK`, the kernel's own codes.
    const RESTARTS: std::ops::RangeInclusive<i64> = 512..=516;
    let in_call = regs.orig_rax.cast_signed() >= 0;
    (in_call && RESTARTS.contains(&regs.rax.cast_signed().wrapping_neg())).then(|| {
        let mut regs = *regs;
        name_restarted_call(process, &mut regs);
        regs
    })
}

/// A call that has been interrupted and restarted before goes by the number of `restart_syscall`, which means nothing
/// at another moment. What it was is in the program's code: the instruction that loaded the number.
fn name_restarted_call(process: &Process, regs: &mut UserRegs) {
    /// Bytes before the system call that are searched.
    const BEFORE: usize = 48;
    const RESTARTED: [i64; 5] = [
        libc::SYS_nanosleep,
        libc::SYS_clock_nanosleep,
        libc::SYS_poll,
        libc::SYS_futex,
        libc::SYS_epoll_wait,
    ];
    if regs.orig_rax != libc::SYS_restart_syscall.cast_unsigned() {
        return;
    }
    let mut code = [0; BEFORE];
    if process
        .read(Addr(regs.rip.wrapping_sub(BEFORE as u64)), &mut code)
        .is_err()
    {
        return;
    }
    // mov eax, number
    let loads = code.windows(5).rev().filter(|bytes| bytes[0] == 0xb8);
    let numbers = loads.filter_map(|bytes| bytes[1..].first_chunk().map(|four| u32::from_le_bytes(*four)));
    if let Some(number) = numbers.map(i64::from).find(|number| RESTARTED.contains(number)) {
        regs.orig_rax = number.cast_unsigned();
    }
}

/// The kernel keeps the rest of an interrupted sleep or poll with a time limit (`ERESTART_RESTARTBLOCK`) to itself, and
/// what it keeps for the live thread belongs to another moment. The call is made again instead: in full, like the
/// clock, which does not go back either. If a signal handler runs first it ends with `EINTR`, as it would have.
fn restart(regs: &mut UserRegs) {
    const ERESTARTNOHAND: i64 = 514;
    const ERESTART_RESTARTBLOCK: i64 = 516;
    if regs.orig_rax.cast_signed() < 0 || regs.rax.cast_signed() != -ERESTART_RESTARTBLOCK {
        return;
    }
    let unknown = regs.orig_rax == libc::SYS_restart_syscall.cast_unsigned();
    regs.rax = if unknown {
        -i64::from(libc::EINTR)
    } else {
        -ERESTARTNOHAND
    }
    .cast_unsigned();
}
