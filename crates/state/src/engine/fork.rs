//! Making sandboxes from the state of another.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use deltabox_api::{ForkRequest, ForkResult, Forked, ForkedSandbox};

use super::{Engine, check_name, now_unix};
use crate::catalog::{CheckpointRecord, SandboxRecord};
use crate::error::{Error, Result};
use crate::id::SandboxId;
use crate::sandbox::{ForkPoint, Handle};

/// Children of one request at the most: each is a cell with processes of its own.
const MOST: usize = 1000;

impl Engine {
    /// Makes `request.count` sandboxes from one state of the sandbox `name`. What keeps one child from being made is
    /// told in its place and does not keep the others from it.
    pub fn fork(&self, name: &str, request: ForkRequest) -> Result<ForkResult> {
        let start = Instant::now();
        if !(1..=MOST).contains(&request.count) {
            return Err(
                Error::usage(format!("{} is no number of sandboxes to make", request.count))
                    .hint(format!("give a number from 1 to {MOST}")),
            );
        }
        let children: Vec<(SandboxId, String)> = (0..request.count)
            .map(|place| {
                let id = SandboxId::random();
                let name = child_name(request.name.as_deref(), &id, place, request.count);
                (id, name)
            })
            .collect();
        let ids = children.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>();
        let from = request.from;
        let point = self
            .get(name)?
            .call(move |sandbox| sandbox.fork_point(from.as_deref(), &ids))?;
        let made = self.make_children(&point, &children);
        Ok(ForkResult {
            checkpoint: point.checkpoint.id.to_string(),
            stopped_ms: point.stopped_ms,
            total_ms: start.elapsed().as_secs_f64() * 1e3,
            children: made,
        })
    }

    /// On as many threads as there are processors: the work is the kernel's, in the children's own threads.
    fn make_children(&self, point: &ForkPoint, children: &[(SandboxId, String)]) -> Vec<Forked> {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let (next, made) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..workers.min(children.len()) {
                scope.spawn(|| {
                    while let Some((id, name)) = children.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let child = self.make_child(point, id, name);
                        made.lock().expect("not poisoned").push((name, child));
                    }
                });
            }
        });
        let mut made = made.into_inner().expect("not poisoned");
        let place = |name: &String| children.iter().position(|(_, other)| other == name);
        made.sort_by_key(|(name, _)| place(name));
        made.into_iter().map(|(_, child)| child).collect()
    }

    fn make_child(&self, point: &ForkPoint, id: &SandboxId, name: &str) -> Forked {
        let start = Instant::now();
        let made = check_name(name).and_then(|()| self.make(name, || self.start_child(point, id, name)));
        match made {
            Ok(sandbox) => Forked::Made(Box::new(ForkedSandbox {
                sandbox,
                total_ms: start.elapsed().as_secs_f64() * 1e3,
            })),
            Err(error) => {
                self.shared.kept.remove_all(id);
                self.shared.contents.remove_all(id);
                Forked::Failed {
                    name: name.to_owned(),
                    error: error.into_api(),
                }
            }
        }
    }

    /// A sandbox whose only checkpoint is the fork point, and that is rolled back to it.
    fn start_child(
        &self,
        point: &ForkPoint,
        id: &SandboxId,
        name: &str,
    ) -> Result<(Handle, deltabox_api::SandboxInfo)> {
        let checkpoint = CheckpointRecord {
            parent: None,
            sequence: 0,
            pinned: false,
            durable: false,
            ..point.checkpoint.clone()
        };
        let record = SandboxRecord {
            id: id.clone(),
            name: name.to_owned(),
            created_unix: now_unix(),
            current: Some(checkpoint.id.clone()),
            ..point.sandbox.clone()
        };
        let to = checkpoint.id.to_string();
        let handle = Handle::spawn(record, vec![checkpoint.clone()], self.shared.clone(), |_, _| {
            Ok(None)
        })?;
        let started = handle.call(move |sandbox| {
            sandbox.queue_durable(vec![checkpoint]);
            let made = sandbox.rollback(&to)?;
            let mut info = sandbox.info();
            info.phases_ms.extend(made.phases_ms);
            Ok(info)
        });
        match started {
            Ok(info) => Ok((handle, info)),
            Err(error) => {
                if let Err(left) = self.remove_reserved(&handle) {
                    tracing::warn!(%name, error = %left, "a child that could not be made was not removed entirely");
                }
                Err(error)
            }
        }
    }
}

fn child_name(prefix: Option<&str>, id: &SandboxId, place: usize, count: usize) -> String {
    match prefix {
        None => format!("sb-{id}"),
        Some(name) if count == 1 => name.to_owned(),
        Some(prefix) => format!("{prefix}-{}", place + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_child_has_the_name_given_and_several_are_numbered() {
        let id = SandboxId::from("abc");
        assert_eq!(child_name(Some("x"), &id, 0, 1), "x");
        assert_eq!(child_name(Some("x"), &id, 1, 2), "x-2");
        assert_eq!(child_name(None, &id, 1, 2), "sb-abc");
    }
}
