//! System V message queues: messages in order, and who used a queue last.

use std::io;

use deltabox_sys::sysvipc;
use serde::{Deserialize, Serialize};

use super::namespace::{Kind, Namespace, make_with_id};
use super::{Permissions, failed, names};
use crate::error::TraceError;
use crate::ids::{FirstId, InsidePid};
use crate::inject::Batch;
use crate::stop::Tree;

/// One queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    pub id: i32,
    pub permissions: Permissions,
    /// How many bytes it may hold.
    pub room: u64,
    /// Type and text, in the order in which they were sent.
    pub messages: Vec<(i64, Vec<u8>)>,
    pub last_sender: Option<InsidePid>,
    pub last_receiver: Option<InsidePid>,
}

pub(super) fn read(
    namespace: &Namespace,
    ids: &[i32],
    first: FirstId,
    tree: &Tree,
) -> Result<Vec<Queue>, TraceError> {
    let names = names(tree);
    let one = |&id: &i32| {
        let now = sysvipc::queue(id)?;
        let messages = (0..now.messages).map(|place| sysvipc::copy_message(id, place));
        Ok(Queue {
            id,
            permissions: Permissions::of(&now.permissions, first),
            room: now.room,
            messages: messages.collect::<io::Result<_>>()?,
            last_sender: names.get(&now.last_sender).copied(),
            last_receiver: names.get(&now.last_receiver).copied(),
        })
    };
    namespace
        .enter(|| ids.iter().map(one).collect())
        .map_err(failed("read System V message queues"))
}

pub(super) fn restore(
    namespace: &Namespace,
    first: FirstId,
    tree: &mut Tree,
    wanted: &[Queue],
) -> Result<(), TraceError> {
    let restoring = || failed("restore System V message queues");
    let ids = namespace.ids(Kind::Msg).map_err(restoring())?;
    if ids.is_empty() && wanted.is_empty() {
        return Ok(());
    }
    let live = read(namespace, &ids, first, tree)?;
    let outdated = live.iter().filter(|now| !wanted.contains(now));
    let missing: Vec<&Queue> = wanted.iter().filter(|queue| !live.contains(queue)).collect();
    namespace
        .enter(|| {
            outdated.map(|now| now.id).try_for_each(sysvipc::remove_queue)?;
            missing.iter().try_for_each(|queue| make(queue, first))
        })
        .map_err(restoring())?;
    for queue in &missing {
        mark_and_fill(namespace, tree, queue)?;
    }
    let settle = |queue: &&Queue| sysvipc::change_queue(queue.id, &queue.permissions.raw(first), queue.room);
    namespace
        .enter(|| missing.iter().try_for_each(settle))
        .map_err(restoring())
}

fn make(queue: &Queue, first: FirstId) -> io::Result<()> {
    let permissions = &queue.permissions;
    make_with_id(Kind::Msg, queue.id, permissions, first, || {
        sysvipc::make_queue(permissions.key)
    })?;
    // It may hold more than it may take.
    let held: u64 = queue.messages.iter().map(|(_, text)| text.len() as u64).sum();
    let room = queue.room.max(held).max(queue.messages.len() as u64);
    sysvipc::change_queue(queue.id, &permissions.open(first), room)
}

/// Has the last receiver receive something and the last sender send the last message, or something of no meaning.
fn mark_and_fill(namespace: &Namespace, tree: &mut Tree, queue: &Queue) -> Result<(), TraceError> {
    let (from, to) = (queue.last_sender, queue.last_receiver);
    if to.is_some() || (from.is_some() && queue.messages.is_empty()) {
        send(namespace, tree, queue.id, from, &(1, vec![0]))?;
        take(namespace, tree, queue.id, to)?;
    }
    let Some((last, before)) = queue.messages.split_last() else {
        return Ok(());
    };
    namespace
        .enter(|| {
            let mut before = before.iter();
            before.try_for_each(|(kind, text)| sysvipc::send_message(queue.id, *kind, text))
        })
        .map_err(failed("fill a System V message queue"))?;
    send(namespace, tree, queue.id, from, last)
}

/// Sends as a process, or as somebody outside of the sandbox where that is gone.
fn send(
    namespace: &Namespace,
    tree: &mut Tree,
    id: i32,
    by: Option<InsidePid>,
    (kind, text): &(i64, Vec<u8>),
) -> Result<(), TraceError> {
    let Some(process) = by.and_then(|by| tree.by_inside(by)) else {
        let send = || sysvipc::send_message(id, *kind, text);
        return namespace.enter(send).map_err(failed("send a System V message"));
    };
    let mut batch = Batch::new();
    let message = batch.input(&sysvipc::message(*kind, text));
    let call = batch.call(
        libc::SYS_msgsnd,
        &[
            id.into(),
            message.into(),
            text.len().into(),
            libc::IPC_NOWAIT.into(),
        ],
    );
    process.run(&mut batch)?;
    let (pid, name) = (process.pid(), "msgsnd");
    let result = batch.result(call).map(drop);
    result.map_err(|errno| TraceError::Call { pid, name, errno })
}

fn take(namespace: &Namespace, tree: &mut Tree, id: i32, by: Option<InsidePid>) -> Result<(), TraceError> {
    let Some(process) = by.and_then(|by| tree.by_inside(by)) else {
        let take = || sysvipc::take_message(id, 1).map(drop);
        return namespace.enter(take).map_err(failed("take a System V message"));
    };
    let mut batch = Batch::new();
    let message = batch.output(16);
    let args = [
        id.into(),
        message.into(),
        1.into(),
        0.into(),
        libc::IPC_NOWAIT.into(),
    ];
    let call = batch.call(libc::SYS_msgrcv, &args);
    process.run(&mut batch)?;
    let (pid, name) = (process.pid(), "msgrcv");
    let result = batch.result(call).map(drop);
    result.map_err(|errno| TraceError::Call { pid, name, errno })
}
