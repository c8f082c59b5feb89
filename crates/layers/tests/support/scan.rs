//! Everything visible of a tree, to be compared.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub kind: char,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    pub size: u64,
    pub content: u64,
    pub device: u64,
    pub target: Option<PathBuf>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// All names of the file, if there are several.
    pub names: Vec<PathBuf>,
    pub link_count: u64,
}

/// A tree, and how many bytes each file takes on disk.
#[derive(Debug, Default)]
pub struct Scan {
    pub nodes: BTreeMap<PathBuf, Node>,
    pub allocated: BTreeMap<PathBuf, u64>,
}

pub fn scan(root: &Path) -> Scan {
    let mut scan = Scan::default();
    let mut names: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let real = if path.as_os_str().is_empty() {
            root.to_path_buf()
        } else {
            root.join(&path)
        };
        let metadata = real
            .symlink_metadata()
            .unwrap_or_else(|error| panic!("{}: {error}", real.display()));
        if metadata.is_dir() {
            for entry in fs::read_dir(&real).unwrap() {
                pending.push(path.join(entry.unwrap().file_name()));
            }
        } else {
            names.entry(metadata.ino()).or_default().push(path.clone());
            scan.allocated.insert(path.clone(), metadata.blocks() * 512);
        }
        scan.nodes.insert(path, node(&real, &metadata));
    }
    for mut group in names.into_values().filter(|group| group.len() > 1) {
        group.sort();
        for path in &group {
            scan.nodes.get_mut(path).unwrap().names.clone_from(&group);
        }
    }
    scan
}

fn node(real: &Path, metadata: &fs::Metadata) -> Node {
    let kind = metadata.file_type();
    let kind = match () {
        () if kind.is_file() => 'f',
        () if kind.is_dir() => 'd',
        () if kind.is_symlink() => 'l',
        () if kind.is_fifo() => 'p',
        () if kind.is_socket() => 's',
        () if kind.is_char_device() => 'c',
        () => 'b',
    };
    Node {
        kind,
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        size: if kind == 'd' { 0 } else { metadata.size() },
        content: if kind == 'f' { hash(real) } else { 0 },
        device: if "cb".contains(kind) { metadata.rdev() } else { 0 },
        target: (kind == 'l').then(|| fs::read_link(real).unwrap()),
        xattrs: xattrs(real),
        names: Vec::new(),
        link_count: if kind == 'd' { 0 } else { metadata.nlink() },
    }
}

pub fn hash(path: &Path) -> u64 {
    let mut content = Vec::new();
    File::open(path).unwrap().read_to_end(&mut content).unwrap();
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}

pub fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut list = vec![0u8; 65536];
    let length = rustix::fs::llistxattr(path, &mut list[..]).unwrap_or(0);
    let names = list[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| {
            let name = String::from_utf8(name.to_vec()).unwrap();
            let mut value = vec![0u8; 65536];
            let length = rustix::fs::lgetxattr(path, &name, &mut value[..]).unwrap();
            value.truncate(length);
            (name, value)
        })
        // How XFS shows an ACL to the privileged, beside the ACL itself.
        .filter(|(name, _)| !name.starts_with("trusted.SGI_ACL_"))
        .collect()
}

/// What differs, one line each; empty when the trees are the same.
pub fn compare(seen: &Scan, wanted: &Scan) -> Vec<String> {
    let mut differences = Vec::new();
    for (path, node) in &wanted.nodes {
        match seen.nodes.get(path) {
            None => differences.push(format!("{}: missing ({node:?})", path.display())),
            Some(other) if other != node => {
                differences.push(format!(
                    "{}:\n   is     {other:?}\n   wanted {node:?}",
                    path.display()
                ));
            }
            Some(_) => {}
        }
    }
    for path in seen.nodes.keys().filter(|path| !wanted.nodes.contains_key(*path)) {
        differences.push(format!("{}: should not be there", path.display()));
    }
    differences
}

/// Which files take more space than before. A freeze copies nothing; merging keeps holes. (A first write does not keep
/// all of them: without reflinks overlayfs copies a file up in pieces of 1 MB and fills smaller holes.)
pub fn compare_space(seen: &Scan, before: &BTreeMap<PathBuf, u64>) -> Vec<String> {
    // What was not written back yet may take some more when it is.
    const SLACK: u64 = 192 << 10;
    let grown = |(path, before): (&PathBuf, &u64)| {
        let now = seen.allocated.get(path).copied().unwrap_or(0);
        (now > before + SLACK).then(|| format!("{}: takes {now} bytes instead of {before}", path.display()))
    };
    before.iter().filter_map(grown).collect()
}
