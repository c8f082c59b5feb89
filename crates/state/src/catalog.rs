//! The catalog: which sandboxes and durable checkpoints exist. One embedded transactional file, `catalog.redb`.
//!
//! Only what survives a crash is in here: a checkpoint is written after its layers were synced, so whatever the
//! catalog names can be restored. Values are JSON with defaults for absent fields, so that old files stay readable;
//! the format version guards against newer ones.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use deltabox_api::{Limits, Mount, Retention, Root};
use deltabox_layers::Frozen;
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use crate::clocks::Moment;
use crate::error::{Error, Result};
use crate::id::{CheckpointId, SandboxId};
use crate::sandbox::ProcessState;
use crate::segments::Saved;
use crate::steps;
use crate::tree::Node;

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const SANDBOXES: TableDefinition<&str, &[u8]> = TableDefinition::new("sandboxes");
/// Key: sandbox id and sequence number, so that a sandbox's checkpoints lie together in the order they were made.
const CHECKPOINTS: TableDefinition<(&str, u64), &[u8]> = TableDefinition::new("checkpoints");
const FORMAT_VERSION: u64 = 1;

/// What is known of a sandbox beyond the life of its processes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub id: SandboxId,
    pub name: String,
    pub root: Root,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub mounts: Vec<Mount>,
    #[serde(default)]
    pub env: std::collections::BTreeMap<String, String>,
    /// Working directory and user of an image's configuration.
    #[serde(default)]
    pub workdir: Option<String>,
    #[serde(default)]
    pub user: Option<String>,
    /// Lower directories of the base, top first.
    pub base: Vec<std::path::PathBuf>,
    pub created_unix: u64,
    #[serde(default)]
    pub retention: Retention,
    #[serde(default)]
    pub current: Option<CheckpointId>,
}

/// A checkpoint: a node of the tree with its file half.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct CheckpointRecord {
    pub id: CheckpointId,
    pub parent: Option<CheckpointId>,
    pub label: Option<String>,
    pub token: Option<String>,
    pub created_unix_ms: u64,
    /// Position in the order of creation within its sandbox.
    pub sequence: u64,
    pub frozen: Frozen,
    #[serde(default)]
    pub file_bytes: Option<u64>,
    #[serde(default)]
    pub memory_bytes: u64,
    #[serde(default)]
    pub processes: usize,
    /// Names of the contents of open files that it needs; `None`: not known.
    #[serde(default)]
    pub contents: Option<Vec<String>>,
    #[serde(default)]
    pub pinned: bool,
    /// What its clocks showed; of a checkpoint without processes nothing is known.
    #[serde(default)]
    pub moment: Option<Moment>,
    /// The process half, where it is in memory.
    #[serde(skip)]
    pub process_state: Option<ProcessState>,
    /// The process half on disk.
    #[serde(default)]
    pub saved: Option<Saved>,
    /// Making it durable has failed, and will be tried again with the next checkpoint.
    #[serde(skip)]
    pub failed: bool,
    /// Set once the catalog holds the record; not stored.
    #[serde(skip)]
    pub durable: bool,
}

impl Node for CheckpointRecord {
    fn id(&self) -> &CheckpointId {
        &self.id
    }
    fn parent(&self) -> Option<&CheckpointId> {
        self.parent.as_ref()
    }
    fn label(&self) -> Option<&str> {
        self.label.as_deref()
    }
    fn set_parent(&mut self, parent: Option<CheckpointId>) {
        self.parent = parent;
    }
}

/// What becomes of a checkpoint that the catalog may hold already.
pub(crate) struct Change {
    pub checkpoint: CheckpointId,
    pub sequence: u64,
    pub edit: Edit,
}

pub(crate) enum Edit {
    Parent(Option<CheckpointId>),
    Pin(bool),
    /// It is forgotten; then its files and these contents, which no other checkpoint of the sandbox has, can go.
    Remove {
        frozen: Frozen,
        contents: Vec<String>,
    },
}

impl Change {
    /// `None`: it is removed.
    pub fn apply(&self, mut node: CheckpointRecord) -> Option<CheckpointRecord> {
        match &self.edit {
            Edit::Parent(parent) => node.parent.clone_from(parent),
            Edit::Pin(pinned) => node.pinned = *pinned,
            Edit::Remove { .. } => return None,
        }
        Some(node)
    }
}

/// What changes leave of checkpoints that are still to be written.
pub(crate) fn changed(nodes: Vec<CheckpointRecord>, changes: &[Change]) -> Vec<CheckpointRecord> {
    let mut nodes = nodes;
    for change in changes {
        let left = nodes
            .into_iter()
            .filter_map(|node| match node.id == change.checkpoint {
                true => change.apply(node),
                false => Some(node),
            });
        nodes = left.collect();
    }
    nodes
}

/// The catalog; shared by all threads, one writer at a time.
pub(crate) struct Catalog {
    path: PathBuf,
    /// Absent after a failure, until it is opened again.
    database: Mutex<Option<Database>>,
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::internal("cannot use the catalog", error)
}

/// The file of the catalog. It needs no lock: the store has one for all of the state directory.
#[derive(Debug)]
struct Storage {
    file: File,
}

impl StorageBackend for Storage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        steps::set_len(&self.file, len)
    }
    fn sync_data(&self) -> io::Result<()> {
        steps::sync_data(&self.file)
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        steps::write_all_at(&self.file, data, offset)
    }
}

fn open_database(path: &Path) -> Result<Database> {
    let mut options = File::options();
    let opened = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path);
    let opened = opened.map_err(redb::DatabaseError::from);
    let opened = opened.and_then(|file| Database::builder().create_with_backend(Storage { file }));
    opened.map_err(|error| {
        Error::internal(&format!("cannot open {}", path.display()), error)
            .hint("the disk may be failing, or the file is damaged")
    })
}

/// Makes the tables. Those of an unknown version or another program's are refused.
fn make_tables(write: &WriteTransaction, path: &Path) -> Result<()> {
    let mut meta = write.open_table(META).map_err(failed)?;
    let version = meta.get("version").map_err(failed)?.map(|v| v.value());
    match version {
        None => drop(meta.insert("version", FORMAT_VERSION).map_err(failed)?),
        Some(FORMAT_VERSION) => {}
        Some(other) => {
            return Err(Error::new(
                deltabox_api::ErrorKind::Unsupported,
                format!(
                    "{} has format version {other}, this program knows {FORMAT_VERSION}",
                    path.display()
                ),
            )
            .hint("use the version of deltabox that wrote it, or another state directory"));
        }
    }
    write.open_table(SANDBOXES).map_err(failed)?;
    write.open_table(CHECKPOINTS).map_err(failed)?;
    Ok(())
}

impl Catalog {
    /// Opens or creates the catalog.
    pub fn open(path: &Path) -> Result<Self> {
        let catalog = Self {
            path: path.to_owned(),
            database: Mutex::new(Some(open_database(path)?)),
        };
        catalog.write(|write| make_tables(write, path))?;
        Ok(catalog)
    }

    /// Makes a change in one durable transaction.
    fn write(&self, change: impl FnOnce(&WriteTransaction) -> Result<()>) -> Result<()> {
        let mut open = self.database.lock().expect("not poisoned");
        let database = match open.take() {
            Some(database) => database,
            None => open_database(&self.path)?,
        };
        let write = database.begin_write().map_err(failed)?;
        change(&write)?;
        write.commit().map_err(failed)?;
        // What has failed once is of no use any more: it is closed, and opened anew by the next change.
        *open = Some(database);
        Ok(())
    }

    /// All sandboxes with their checkpoints in the order they were made.
    pub fn load(&self) -> Result<Vec<(SandboxRecord, Vec<CheckpointRecord>)>> {
        let open = self.database.lock().expect("not poisoned");
        let database = open
            .as_ref()
            .ok_or_else(|| failed("it was closed after a failure"))?;
        let read = database.begin_read().map_err(failed)?;
        let sandboxes = read.open_table(SANDBOXES).map_err(failed)?;
        let checkpoints = read.open_table(CHECKPOINTS).map_err(failed)?;
        let mut all = Vec::new();
        for entry in sandboxes.iter().map_err(failed)? {
            let (id, value) = entry.map_err(failed)?;
            let mut sandbox: SandboxRecord = serde_json::from_slice(value.value()).map_err(failed)?;
            let mut nodes = Vec::new();
            for entry in checkpoints
                .range((id.value(), 0)..=(id.value(), u64::MAX))
                .map_err(failed)?
            {
                let (_, value) = entry.map_err(failed)?;
                let mut node: CheckpointRecord = serde_json::from_slice(value.value()).map_err(failed)?;
                node.durable = true;
                nodes.push(node);
            }
            // The current one may never have become durable.
            if !nodes
                .iter()
                .any(|node| Some(&node.id) == sandbox.current.as_ref())
            {
                sandbox.current = nodes.last().map(|node| node.id.clone());
            }
            all.push((sandbox, nodes));
        }
        Ok(all)
    }

    /// Writes a sandbox and some of its checkpoints, and changes others, in one durable transaction. What is to be
    /// changed and was never written is passed over.
    pub fn put(
        &self,
        sandbox: &SandboxRecord,
        checkpoints: &[CheckpointRecord],
        changes: &[Change],
    ) -> Result<()> {
        self.write(|write| {
            let mut table = write.open_table(SANDBOXES).map_err(failed)?;
            let value = serde_json::to_vec(sandbox).map_err(failed)?;
            table
                .insert(sandbox.id.as_str(), value.as_slice())
                .map_err(failed)?;
            let mut table = write.open_table(CHECKPOINTS).map_err(failed)?;
            for node in checkpoints {
                let value = serde_json::to_vec(node).map_err(failed)?;
                table
                    .insert((sandbox.id.as_str(), node.sequence), value.as_slice())
                    .map_err(failed)?;
            }
            for change in changes {
                let key = (sandbox.id.as_str(), change.sequence);
                let Some(value) = table.remove(key).map_err(failed)?.map(|old| old.value().to_vec()) else {
                    continue;
                };
                let node: CheckpointRecord = serde_json::from_slice(&value).map_err(failed)?;
                if let Some(node) = change.apply(node) {
                    let value = serde_json::to_vec(&node).map_err(failed)?;
                    table.insert(key, value.as_slice()).map_err(failed)?;
                }
            }
            Ok(())
        })
    }

    /// Forgets a sandbox and its checkpoints, durably.
    pub fn remove(&self, id: &SandboxId) -> Result<()> {
        self.write(|write| {
            let mut table = write.open_table(SANDBOXES).map_err(failed)?;
            table.remove(id.as_str()).map_err(failed)?;
            let mut table = write.open_table(CHECKPOINTS).map_err(failed)?;
            let all = (id.as_str(), 0)..=(id.as_str(), u64::MAX);
            table.retain_in(all, |_, _| false).map_err(failed)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(current: &str) -> SandboxRecord {
        let text = format!(
            r#"{{"id":"s","name":"box","root":{{"type":"host"}},"base":[],"created_unix":1,"current":"{current}"}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn node(id: &str, parent: Option<&str>, sequence: u64) -> CheckpointRecord {
        let parent = serde_json::to_string(&parent).unwrap();
        let text = format!(
            r#"{{"id":"{id}","parent":{parent},"label":null,"token":null,"created_unix_ms":1,
                "sequence":{sequence},"frozen":{{"volume":1,"top":"base"}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn change(id: &str, sequence: u64, edit: Edit) -> Change {
        Change {
            checkpoint: id.into(),
            sequence,
            edit,
        }
    }

    fn removal() -> Edit {
        Edit::Remove {
            frozen: node("a", None, 0).frozen,
            contents: Vec::new(),
        }
    }

    fn shape(nodes: &[CheckpointRecord]) -> Vec<(&str, Option<&str>, bool)> {
        nodes
            .iter()
            .map(|node| {
                let parent = node.parent.as_ref().map(CheckpointId::as_str);
                (node.id.as_str(), parent, node.pinned)
            })
            .collect()
    }

    #[test]
    fn changes_are_made_in_order_to_what_is_written_and_to_what_is_not_yet() {
        let directory = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(&directory.path().join("catalog")).unwrap();
        let nodes = vec![
            node("a", None, 0),
            node("b", Some("a"), 1),
            node("c", Some("b"), 2),
        ];
        let changes = [
            change("c", 2, Edit::Parent(Some("a".into()))),
            change("b", 1, removal()),
            change("c", 2, Edit::Parent(None)),
            change("a", 0, removal()),
            change("c", 2, Edit::Pin(true)),
            // Was never written.
            change("d", 3, Edit::Pin(true)),
        ];
        let left = changed(nodes.clone(), &changes);
        assert_eq!(shape(&left), [("c", None, true)]);
        catalog.put(&sandbox("c"), &nodes, &changes[..2]).unwrap();
        let (_, read) = catalog.load().unwrap().remove(0);
        assert_eq!(shape(&read), [("a", None, false), ("c", Some("a"), false)]);
        catalog.put(&sandbox("c"), &[], &changes[2..]).unwrap();
        let (record, read) = catalog.load().unwrap().remove(0);
        assert_eq!(shape(&read), [("c", None, true)]);
        assert_eq!(record.current, Some("c".into()));
    }

    #[test]
    fn where_the_current_one_was_never_written_it_is_the_last() {
        let directory = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(&directory.path().join("catalog")).unwrap();
        let nodes = [node("a", None, 0), node("b", Some("a"), 1)];
        catalog.put(&sandbox("gone"), &nodes, &[]).unwrap();
        assert_eq!(catalog.load().unwrap()[0].0.current, Some("b".into()));
        let changes = [change("a", 0, removal()), change("b", 1, removal())];
        catalog.put(&sandbox("gone"), &[], &changes).unwrap();
        assert_eq!(catalog.load().unwrap()[0].0.current, None);
    }
}
