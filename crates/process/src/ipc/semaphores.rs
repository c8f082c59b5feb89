//! System V semaphores: values, who changed them last, and what is given back when a process ends.

use std::collections::BTreeMap;
use std::io;

use deltabox_sys::sysvipc::{self, Operation};
use serde::{Deserialize, Serialize};

use super::namespace::{Kind, Namespace, make_with_id};
use super::{Permissions, failed, names, undo};
use crate::error::TraceError;
use crate::ids::{FirstId, InsidePid};
use crate::inject::Batch;
use crate::stop::Tree;

/// Operations in one call: the kernel takes 500 unless told otherwise.
pub(super) const OPERATIONS: usize = 400;

/// One set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Set {
    pub id: i32,
    pub permissions: Permissions,
    /// `semop` has been used on it: some programs wait for that.
    pub operated: bool,
    pub semaphores: Vec<Semaphore>,
    /// Of each process that is to give something back: the semaphores and what is added to them at its end.
    pub undo: Vec<(InsidePid, Vec<(u16, i16)>)>,
}

/// One semaphore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Semaphore {
    pub value: u16,
    pub last: Option<InsidePid>,
}

pub(super) fn read(
    namespace: &Namespace,
    ids: &[i32],
    first: FirstId,
    tree: &mut Tree,
) -> Result<Vec<Set>, TraceError> {
    let names = names(tree);
    let one = |&id: &i32| {
        let now = sysvipc::set(id)?;
        let semaphore = |number| {
            let (value, last) = sysvipc::semaphore(id, number)?;
            let last = names.get(&last).copied();
            Ok(Semaphore { value, last })
        };
        Ok(Set {
            id,
            permissions: Permissions::of(&now.permissions, first),
            operated: now.operated != 0,
            semaphores: (0..now.count).map(semaphore).collect::<io::Result<_>>()?,
            undo: Vec::new(),
        })
    };
    let mut sets: Vec<Set> = namespace
        .enter(|| ids.iter().map(one).collect())
        .map_err(failed("read System V semaphores"))?;
    undo::read(tree, &mut sets)?;
    Ok(sets)
}

pub(super) fn restore(
    namespace: &Namespace,
    first: FirstId,
    tree: &mut Tree,
    wanted: &[Set],
) -> Result<(), TraceError> {
    let restoring = || failed("restore System V semaphores");
    let ids = namespace.ids(Kind::Sem).map_err(restoring())?;
    if ids.is_empty() && wanted.is_empty() {
        return Ok(());
    }
    let live = read(namespace, &ids, first, tree)?;
    let outdated = live.iter().filter(|now| !wanted.contains(now));
    let missing: Vec<&Set> = wanted.iter().filter(|set| !live.contains(set)).collect();
    let make = |set: &&Set| {
        let permissions = &set.permissions;
        let count = u16::try_from(set.semaphores.len()).unwrap_or(u16::MAX);
        make_with_id(Kind::Sem, set.id, permissions, first, || {
            sysvipc::make_set(permissions.key, count)
        })?;
        sysvipc::change_set(set.id, &permissions.open(first))
    };
    namespace
        .enter(|| {
            outdated.map(|now| now.id).try_for_each(sysvipc::remove_set)?;
            missing.iter().try_for_each(make)
        })
        .map_err(restoring())?;
    for set in &missing {
        // While all values are zero.
        undo::restore(tree, set)?;
        values(namespace, tree, set)?;
    }
    let settle = |set: &&Set| sysvipc::change_set(set.id, &set.permissions.raw(first));
    namespace
        .enter(|| missing.iter().try_for_each(settle))
        .map_err(restoring())
}

/// Has everybody who changed a semaphore last do it again.
fn values(namespace: &Namespace, tree: &mut Tree, set: &Set) -> Result<(), TraceError> {
    let mut by: BTreeMap<Option<InsidePid>, Vec<(u16, u16)>> = BTreeMap::new();
    for (number, semaphore) in (0..).zip(&set.semaphores) {
        let last = semaphore.last.filter(|pid| tree.by_inside(*pid).is_some());
        by.entry(last).or_default().push((number, semaphore.value));
    }
    for (who, values) in by {
        match who.and_then(|who| tree.by_inside(who)) {
            Some(process) => {
                let mut batch = Batch::new();
                if set.operated {
                    undo::operate(&mut batch, set.id, &operations(&values));
                } else {
                    for (number, value) in values {
                        let command = libc::SETVAL;
                        let args = [set.id, number.into(), command, value.into()].map(Into::into);
                        batch.call(libc::SYS_semctl, &args);
                    }
                }
                undo::must(process, &mut batch)?;
            }
            None => namespace
                .enter(|| set_from_outside(set, &values))
                .map_err(failed("set System V semaphores"))?,
        }
    }
    Ok(())
}

/// From zero to the values.
fn operations(values: &[(u16, u16)]) -> Vec<Operation> {
    let one = |&(number, value): &(u16, u16)| Operation {
        number,
        by: value.cast_signed(),
        flags: 0,
    };
    values.iter().map(one).collect()
}

fn set_from_outside(set: &Set, values: &[(u16, u16)]) -> io::Result<()> {
    if set.operated {
        let mut chunks = values.chunks(OPERATIONS);
        return chunks.try_for_each(|chunk| sysvipc::operate(set.id, &operations(chunk)));
    }
    let mut values = values.iter().filter(|(_, value)| *value != 0);
    values.try_for_each(|&(number, value)| sysvipc::set_semaphore(set.id, number, value))
}
