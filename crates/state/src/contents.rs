//! What open files without a name held, one directory for each sandbox: which of it there is, and when it goes.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use deltabox_process::descriptor::ContentDirectory;

use crate::catalog::{CheckpointRecord, SandboxRecord};
use crate::id::SandboxId;
use crate::sandbox::ProcessState;
use crate::steps;

/// The directories of all sandboxes.
#[derive(Debug, Clone)]
pub(crate) struct Contents(PathBuf);

/// Names of the contents that a state needs.
pub(crate) fn names(state: &ProcessState) -> Vec<String> {
    let mut names: Vec<_> = state.contents().map(ContentDirectory::file_name).collect();
    names.sort();
    names.dedup();
    names
}

impl Contents {
    pub fn new(home: &Path) -> Self {
        Self(home.join("contents"))
    }

    /// Where what is kept for the checkpoints of a sandbox is.
    pub fn of(&self, sandbox: &SandboxId) -> PathBuf {
        self.0.join(sandbox.as_str())
    }

    /// The contents a state refers to are written by now, but perhaps not to the disk.
    pub fn sync(&self, sandbox: &SandboxId, state: &ProcessState) -> io::Result<()> {
        let directory = self.of(sandbox);
        let names = names(state);
        for name in &names {
            steps::sync_data(&File::open(directory.join(name))?)?;
        }
        if !names.is_empty() {
            steps::sync(&File::open(directory)?)?;
            // The directory itself may be new.
            steps::sync(&File::open(&self.0)?)?;
        }
        Ok(())
    }

    /// What a content takes on disk.
    pub fn bytes(&self, sandbox: &SandboxId, name: &str) -> u64 {
        fs::metadata(self.of(sandbox).join(name)).map_or(0, |file| file.blocks() * 512)
    }

    /// Removes contents that no checkpoint of the sandbox needs any more.
    pub fn remove(&self, sandbox: &SandboxId, names: &[String]) {
        let directory = self.of(sandbox);
        for name in names {
            report(steps::remove_file(&directory.join(name)));
        }
    }

    /// Removes everything of a sandbox.
    pub fn remove_all(&self, sandbox: &SandboxId) {
        report(steps::remove_dir_all(&self.of(sandbox)));
    }

    /// Removes what a daemon that was killed left: contents that none of the known checkpoints needs.
    pub fn sweep(&self, known: &[(SandboxRecord, Vec<CheckpointRecord>)]) -> io::Result<()> {
        let needed: HashMap<&str, Option<HashSet<&str>>> = known
            .iter()
            .map(|(record, nodes)| {
                let lists: Option<Vec<_>> = nodes.iter().map(|node| node.contents.as_ref()).collect();
                let names = lists.map(|lists| lists.into_iter().flatten().map(String::as_str).collect());
                (record.id.as_str(), names)
            })
            .collect();
        for directory in entries(&self.0)? {
            match needed.get(directory.file_name().to_string_lossy().as_ref()) {
                None => report(fs::remove_dir_all(directory.path())),
                // A checkpoint does not say what it needs.
                Some(None) => {}
                Some(Some(names)) => {
                    for file in entries(&directory.path())? {
                        if !names.contains(file.file_name().to_string_lossy().as_ref()) {
                            report(fs::remove_file(file.path()));
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

fn entries(directory: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.collect(),
    }
}

fn report(removed: io::Result<()>) {
    if let Err(error) = removed
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "contents of open files that nobody needs stay behind");
    }
}
