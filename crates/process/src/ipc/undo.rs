//! What the kernel adds to semaphores when a process ends (`SEM_UNDO`).
//!
//! There is no call that tells. But operations are done all or none, and one that would take such an amount out of its
//! range fails with `ERANGE`. So a process is made to try operations of which the last one would have to wait, which
//! is refused (`EAGAIN`): whatever comes of it, nothing has changed. Which of the two errors it is tells whether the
//! amount is above a limit. (One trace is left: when a process that was asked ends, the kernel notes the time as that of
//! an operation.)

use std::cmp::Ordering;

use deltabox_sys::kcmp;
use deltabox_sys::sysvipc::Operation;
use rustix::io::Errno;

use super::semaphores::{OPERATIONS, Set};
use crate::error::TraceError;
use crate::ids::HostPid;
use crate::inject::{Batch, CallId};
use crate::stop::{Process, Tree};
use crate::survey::Refusal;

/// The largest value of a semaphore, and the largest amount to give back (`SEMVMX`, `SEMAEM`).
const MAX: i16 = i16::MAX;

const UNDO: i16 = libc::SEM_UNDO as i16;
const NOWAIT: i16 = libc::IPC_NOWAIT as i16;

/// Semaphores asked in one call, with seven operations each.
const ASKED: usize = OPERATIONS / 8;

fn operation(number: u16, by: i16, flags: i16) -> Operation {
    Operation { number, by, flags }
}

/// Adds calls that do these operations.
pub(super) fn operate(batch: &mut Batch, id: i32, operations: &[Operation]) {
    for chunk in operations.chunks(OPERATIONS) {
        call(batch, id, chunk);
    }
}

fn call(batch: &mut Batch, id: i32, operations: &[Operation]) -> CallId {
    let bytes: Vec<u8> = operations.iter().flat_map(|one| one.bytes()).collect();
    let buffer = batch.input(&bytes);
    let args = [id.into(), buffer.into(), operations.len().into()];
    batch.call(libc::SYS_semop, &args)
}

/// Runs calls that have to work.
pub(super) fn must(process: &mut Process, batch: &mut Batch) -> Result<(), TraceError> {
    process.run(batch)?;
    batch
        .first_error()
        .map_or(Ok(()), |(_, errno)| Err(semop_failed(process.pid(), errno)))
}

fn semop_failed(pid: HostPid, errno: Errno) -> TraceError {
    let name = "semop";
    TraceError::Call { pid, name, errno }
}

/// Raises a semaphore to the largest value, from which everything below starts and to which it comes back.
fn raise(number: u16, value: u16) -> Option<Operation> {
    let by = MAX - value.cast_signed();
    (by > 0).then(|| operation(number, by, 0))
}

/// Fails with `ERANGE` unless the amounts of all these semaphores are zero.
fn any(semaphores: &[(u16, u16)]) -> Vec<Operation> {
    let mut all = Vec::with_capacity(semaphores.len() * 7 + 1);
    for &(number, value) in semaphores {
        all.extend(raise(number, value));
        // The amount grows by as much as is taken: this is too much if it is above zero.
        all.push(operation(number, -MAX, UNDO));
        all.push(operation(number, MAX, UNDO));
        // And this if it is below.
        all.push(operation(number, -MAX, 0));
        all.push(operation(number, MAX, UNDO));
        all.push(operation(number, -1, 0));
        all.push(operation(number, 1, UNDO));
    }
    wait_for_zero(&mut all);
    all
}

/// Fails with `ERANGE` if the amount plus `more` is beyond the largest one.
fn exceeds(number: u16, value: u16, mut more: i32) -> Vec<Operation> {
    let mut all: Vec<Operation> = raise(number, value).into_iter().collect();
    while more > 0 {
        let step = i16::try_from(more).unwrap_or(MAX);
        all.push(operation(number, -step, UNDO));
        all.push(operation(number, step, 0));
        more -= i32::from(step);
    }
    // Even if the semaphore is as it was: it is at its largest value.
    if all.is_empty() {
        all.push(operation(number, -1, 0));
        all.push(operation(number, 1, 0));
    }
    wait_for_zero(&mut all);
    all
}

fn wait_for_zero(all: &mut Vec<Operation>) {
    if let Some(last) = all.last() {
        all.push(operation(last.number, 0, NOWAIT));
    }
}

/// Whether the operations were out of range. A process that may not change the semaphores has nothing to give back.
fn out_of_range(pid: HostPid, result: Result<u64, Errno>) -> Result<bool, TraceError> {
    match result {
        Err(Errno::RANGE) => Ok(true),
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(false),
        Err(errno) => Err(semop_failed(pid, errno)),
        Ok(_) => Err(semop_failed(pid, Errno::PROTO)),
    }
}

/// Adds what each process has to give back.
pub(super) fn read(tree: &mut Tree, sets: &mut [Set]) -> Result<(), TraceError> {
    for process in &mut tree.processes {
        let asked = suspects(process, sets)?;
        let amounts = amounts(process, sets, &asked)?;
        for (&(place, number), amount) in asked.iter().zip(amounts) {
            if amount == 0 {
                continue;
            }
            let undo = &mut sets[place].undo;
            match undo.last_mut().filter(|(pid, _)| *pid == process.inside()) {
                Some((_, all)) => all.push((number, amount)),
                None => undo.push((process.inside(), vec![(number, amount)])),
            }
        }
    }
    sets.iter_mut().for_each(|set| set.undo.sort());
    Ok(())
}

/// The semaphores, by place of the set and number, among which there is one that the process has something to give back
/// to: for most processes none.
fn suspects(process: &mut Process, sets: &[Set]) -> Result<Vec<(usize, u16)>, TraceError> {
    let mut batch = Batch::new();
    let mut calls = Vec::new();
    for (place, set) in sets.iter().enumerate() {
        let all: Vec<(u16, u16)> = (0..).zip(set.semaphores.iter().map(|one| one.value)).collect();
        for chunk in all.chunks(ASKED) {
            calls.push((call(&mut batch, set.id, &any(chunk)), place, chunk.to_vec()));
        }
    }
    process.run(&mut batch)?;
    let mut found = Vec::new();
    for (call, place, chunk) in calls {
        if out_of_range(process.pid(), batch.result(call))? {
            found.extend(chunk.iter().map(|&(number, _)| (place, number)));
        }
    }
    Ok(found)
}

/// What the process has to give back to each of these semaphores: all searches go on at the same time.
fn amounts(process: &mut Process, sets: &[Set], asked: &[(usize, u16)]) -> Result<Vec<i16>, TraceError> {
    /// One more than the largest amount: plus this, all but the very smallest amount is too much.
    const BEYOND: i32 = MAX as i32 + 1;
    // What is not too much yet, and what is.
    let mut ranges = vec![(0, 2 * BEYOND); asked.len()];
    while ranges.iter().any(|(low, high)| high - low > 1) {
        let mut batch = Batch::new();
        let mut calls = Vec::with_capacity(asked.len());
        for (&(place, number), (low, high)) in asked.iter().zip(&ranges) {
            let set = &sets[place];
            let value = set.semaphores[usize::from(number)].value;
            calls.push(call(
                &mut batch,
                set.id,
                &exceeds(number, value, (low + high) / 2),
            ));
        }
        process.run(&mut batch)?;
        for (call, (low, high)) in calls.into_iter().zip(&mut ranges) {
            let middle = (*low + *high) / 2;
            if out_of_range(process.pid(), batch.result(call))? {
                *high = middle;
            } else {
                *low = middle;
            }
        }
    }
    let amount = |(_, high): &(i32, i32)| i16::try_from(BEYOND - high).unwrap_or(i16::MIN);
    Ok(ranges.iter().map(amount).collect())
}

/// Has the processes owe what they owed. All semaphores of the set are zero, and stay so.
pub(super) fn restore(tree: &mut Tree, set: &Set) -> Result<(), TraceError> {
    for (pid, amounts) in &set.undo {
        let Some(process) = tree.by_inside(*pid) else {
            continue;
        };
        let mut batch = Batch::new();
        for chunk in amounts.chunks(OPERATIONS / 4) {
            let all: Vec<Operation> = chunk
                .iter()
                .flat_map(|&(number, amount)| owe(number, amount))
                .collect();
            call(&mut batch, set.id, &all);
        }
        must(process, &mut batch)?;
    }
    Ok(())
}

/// In two halves, since the smallest amount is one more than an operation can take.
fn owe(number: u16, amount: i16) -> Vec<Operation> {
    let halves = [amount / 2, amount - amount / 2];
    let both = halves.into_iter().filter(|half| *half != 0).map(|half| {
        if half > 0 {
            [operation(number, half, 0), operation(number, -half, UNDO)]
        } else {
            [operation(number, -half, UNDO), operation(number, half, 0)]
        }
    });
    both.flatten().collect()
}

/// Lists of amounts that are shared by more or less than the threads of a process (`CLONE_SYSVSEM`).
pub(super) fn survey(tree: &Tree, sets: &[Set], refusals: &mut Vec<Refusal>) -> Result<(), TraceError> {
    let owes = |process: &&Process| {
        let mut all = sets.iter().flat_map(|set| &set.undo);
        all.any(|(pid, _)| *pid == process.inside())
    };
    let debtors: Vec<&Process> = tree.processes.iter().filter(owes).collect();
    for (place, process) in debtors.iter().enumerate() {
        for other in &debtors[place + 1..] {
            if shared(process.pid(), other.pid())? {
                refusals.push(refuse(other, "it is shared with another process"));
            }
        }
    }
    for process in &tree.processes {
        for thread in process.threads.iter().skip(1) {
            if !shared(process.pid(), thread.tracee.tid())? {
                refusals.push(refuse(process, "a thread has one of its own"));
                break;
            }
        }
    }
    Ok(())
}

fn shared(one: HostPid, two: HostPid) -> Result<bool, TraceError> {
    let order = kcmp::tasks(one.pid(), two.pid(), kcmp::Resource::SemaphoreUndo);
    order
        .map(|order| order == Ordering::Equal)
        .map_err(|source| TraceError::Request {
            tid: two,
            what: "compare the semaphore undo list of",
            source,
        })
}

fn refuse(process: &Process, why: &str) -> Refusal {
    Refusal {
        pid: process.inside(),
        name: process.name().to_owned(),
        what: "its list of semaphore operations to undo".to_owned(),
        why: why.to_owned(),
        remedy: "start threads with CLONE_SYSVSEM, as pthread_create does, and processes without".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel does (`perform_atomic_semop_slow`): the value, the amount, and the error.
    fn kernel(mut value: i32, mut amount: i32, all: &[Operation]) -> (i32, i32, Option<Errno>) {
        let before = (value, amount);
        for one in all {
            let by = i32::from(one.by);
            let result = value + by;
            let error = if (by == 0 && value != 0) || result < 0 {
                Some(Errno::AGAIN)
            } else if result > i32::from(MAX) {
                Some(Errno::RANGE)
            } else if one.flags & UNDO != 0 {
                amount -= by;
                (!(-32768..=32767).contains(&amount)).then_some(Errno::RANGE)
            } else {
                None
            };
            if error.is_some() {
                return (before.0, before.1, error);
            }
            value = result;
        }
        (value, amount, None)
    }

    #[test]
    fn errors_tell_the_amount_and_nothing_changes() {
        for value in [0, 1, 8, 16384, 32766, 32767] {
            for amount in [-32768, -32767, -3, -1, 0, 1, 2, 300, 32767] {
                let tried = kernel(value, amount, &any(&[(0, value as u16)]));
                let expected = if amount == 0 { Errno::AGAIN } else { Errno::RANGE };
                assert_eq!(tried, (value, amount, Some(expected)));
                for more in [0, 1, 32766, 32767, 32768, 32770, 65535] {
                    let tried = kernel(value, amount, &exceeds(0, value as u16, more));
                    let expected = if amount + more > 32767 {
                        Errno::RANGE
                    } else {
                        Errno::AGAIN
                    };
                    assert_eq!(tried, (value, amount, Some(expected)), "plus {more}");
                }
            }
        }
    }

    #[test]
    fn amounts_are_owed_without_changing_the_value() {
        for amount in [-32768, -1, 1, 2, 32767] {
            assert_eq!(kernel(0, 0, &owe(0, amount)), (0, amount.into(), None));
        }
    }
}
