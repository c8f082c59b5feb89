//! From an image to directories.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::blobs::Blobs;
use crate::compress::Unpacked;
use crate::digest::{Bounded, Digest, Hashing};
use crate::error::{Error, Result, one_line};
use crate::limits::{Budget, Limits};
use crate::oci::{self, ImageConfig, LayerBlob, Platform, Resolved, mismatch};
use crate::source::ImageSource;
use crate::staging::{Staging, open_dir, sync_dir};
use crate::tar::read::from_io;
use crate::{flatten, unpack};

/// How to import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// What the image may demand.
    pub limits: Limits,
    /// Which variant of a multi-platform image.
    pub platform: Platform,
    /// Makes device nodes instead of leaving them out with a warning. Only for images one made oneself, and
    /// for mounts with `nodev`: a device node in a layer is as usable as any other.
    pub keep_devices: bool,
    /// Where pulled images are kept, as one OCI layout; without it they are pulled anew each time.
    pub cache: Option<PathBuf>,
    /// Who asks the registry.
    #[cfg(feature = "registry")]
    pub credentials: Option<crate::Credentials>,
}

impl Default for ImportOptions {
    fn default() -> Self {
        ImportOptions {
            limits: Limits::default(),
            platform: Platform::host(),
            keep_devices: false,
            cache: None,
            #[cfg(feature = "registry")]
            credentials: None,
        }
    }
}

/// An image on disk.
#[derive(Debug, Clone)]
pub struct ImportedImage {
    /// Directories in overlayfs format, top first; or the one flattened root.
    pub layers: Vec<PathBuf>,
    /// How the image wants to be run.
    pub config: ImageConfig,
    /// Digest of the image's manifest (of its configuration, where there is no manifest).
    pub digest: Digest,
    /// What could not be carried over (devices, foreign attributes), one line each.
    pub warnings: Vec<String>,
    /// Layers that were already there and were reused.
    pub reused: usize,
}

/// What is kept beside an unpacked layer.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    warnings: Vec<String>,
    opaque_root: bool,
}

/// Imports an image as directories in overlayfs format, one per layer, named `<dest>/sha256-<hex>` after the
/// digest of the unpacked layer. A layer that is already there is reused. `dest` is made if it is missing,
/// for root alone: the layers hold set-uid programs of others. New layers are on the medium, under their
/// final names, only when all of the image was read and found right; after a failure nothing new is left.
pub fn import(source: &ImageSource, dest: &Path, options: &ImportOptions) -> Result<ImportedImage> {
    let made = make_dest(dest)?;
    let result = import_layers(source, dest, options);
    if made && result.is_err() {
        // Only an empty directory is removed: another import may have started to use it.
        let _ = std::fs::remove_dir(dest);
    }
    result
}

fn import_layers(source: &ImageSource, dest: &Path, options: &ImportOptions) -> Result<ImportedImage> {
    let staging = Staging::new(dest)?;
    let mut budget = Budget::new(options.limits.clone());
    let (blobs, image) = open(source, &staging, options, &mut budget)?;
    let mut layers: Vec<(PathBuf, Record)> = vec![];
    let mut fresh: HashMap<String, PathBuf> = HashMap::new();
    let mut reused = 0;
    for layer in &image.layers {
        let name = layer_name(layer, options.keep_devices);
        let path = dest.join(&name);
        let record_path = staging.path.join(format!("{name}.json"));
        if let Some(record) = published(&path)? {
            reused += 1;
            layers.push((path, record));
            continue;
        }
        if let Entry::Vacant(slot) = fresh.entry(name.clone()) {
            let (unpacked_path, fd) = staging.dir(&name)?;
            let record = unpack_layer(&blobs, layer, fd, options, &mut budget)?;
            let json = serde_json::to_vec(&record).map_err(|e| Error::io("write", &record_path)(e.into()))?;
            std::fs::write(&record_path, json).map_err(Error::io("write", &record_path))?;
            slot.insert(unpacked_path);
        }
        layers.push((path, read_record(&record_path)?));
    }
    publish(&staging, dest, &fresh)?;
    let mut seen = std::collections::HashSet::new();
    let warnings = layers
        .iter()
        .filter(|(path, _)| seen.insert(path.clone()))
        .flat_map(|(_, r)| r.warnings.clone())
        .collect();
    Ok(ImportedImage {
        layers: stack(layers),
        config: image.config,
        digest: image.digest,
        warnings,
        reused,
    })
}

/// Imports an image as one root directory at `dest`, which must be missing or empty.
pub fn import_flat(source: &ImageSource, dest: &Path, options: &ImportOptions) -> Result<ImportedImage> {
    let parent = match dest.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match std::fs::read_dir(dest).map(|mut entries| entries.next().is_some()) {
        Ok(true) => return Err(Error::Exists { path: dest.into() }),
        Ok(false) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io("read", dest)(e)),
    }
    make_dest(parent)?;
    let staging = Staging::new(parent)?;
    let mut budget = Budget::new(options.limits.clone());
    let (blobs, image) = open(source, &staging, options, &mut budget)?;
    let mut warnings = vec![];
    let mut unpacked = vec![];
    for (i, layer) in image.layers.iter().enumerate() {
        let (path, fd) = staging.dir(&format!("layer-{i}"))?;
        let record = unpack_layer(&blobs, layer, fd, options, &mut budget)?;
        warnings.extend(record.warnings.iter().cloned());
        unpacked.push((path, record));
    }
    let root = match &stack(unpacked)[..] {
        [] => staging.dir("empty")?.0,
        [top, lower @ ..] => {
            flatten::merge(top, lower)?;
            top.clone()
        }
    };
    staging.sync()?;
    // rename(2) puts a directory in the place of an empty one.
    std::fs::rename(&root, dest).map_err(Error::io("create", dest))?;
    sync_dir(parent)?;
    Ok(ImportedImage {
        layers: vec![dest.into()],
        config: image.config,
        digest: image.digest,
        warnings,
        reused: 0,
    })
}

fn open(
    source: &ImageSource,
    staging: &Staging,
    options: &ImportOptions,
    budget: &mut Budget,
) -> Result<(Blobs, Resolved)> {
    let (path, name) = match source {
        ImageSource::Local { path, name } => (path.clone(), name.clone()),
        #[cfg(feature = "registry")]
        ImageSource::Registry(reference) => {
            let cache = options
                .cache
                .clone()
                .unwrap_or_else(|| staging.path.join("pulled"));
            let credentials = options.credentials.as_ref();
            crate::registry::pull(reference, &cache, &options.platform, &options.limits, credentials)?;
            (cache, Some(reference.to_string()))
        }
        #[cfg(not(feature = "registry"))]
        ImageSource::Registry(reference) => {
            return Err(Error::NoRegistryClient {
                reference: reference.to_string(),
            });
        }
    };
    let blobs = Blobs::open(&path, &staging.path, budget)?;
    let image = oci::resolve(&blobs, name.as_deref(), &options.platform, &options.limits)?;
    Ok((blobs, image))
}

/// Reads a layer to its end, checks both digests, and unpacks it on the way.
fn unpack_layer(
    blobs: &Blobs,
    layer: &LayerBlob,
    target: OwnedFd,
    options: &ImportOptions,
    budget: &mut Budget,
) -> Result<Record> {
    let subject = format!("layer {}", &layer.diff_id.hex()[..12]);
    let (file, _) = blobs.file(&layer.file)?.ok_or_else(|| Error::Missing {
        what: format!("{subject} ({:?})", one_line(&layer.file)),
    })?;
    let packed = Hashing::new(file);
    let fed = packed.count();
    let plain = Unpacked::new(packed, &subject)?;
    let bounded = Bounded::new(plain, subject.clone(), fed, budget.bytes_left(), &budget.limits);
    let stream = BufReader::with_capacity(64 << 10, Hashing::new(bounded));
    let (mut stream, unpacked) = unpack::unpack(stream, target, &subject, options.keep_devices, budget)?;
    // The digest is that of the whole stream, padding after the archive's end included.
    io::copy(&mut stream, &mut io::sink()).map_err(|e| from_io(&subject, e))?;
    let (bounded, diff_id, _) = stream.into_inner().finish();
    budget.take_bytes(bounded.produced())?;
    let mut packed = bounded.into_inner().into_packed();
    io::copy(&mut packed, &mut io::sink()).map_err(|e| from_io(&subject, e))?;
    let (_, digest, _) = packed.into_inner().finish();
    if let Some(expected) = layer.digest.filter(|expected| *expected != digest) {
        return Err(mismatch(&layer.file, expected, digest));
    }
    if diff_id != layer.diff_id {
        return Err(mismatch(&format!("{subject}, unpacked,"), layer.diff_id, diff_id));
    }
    Ok(Record {
        warnings: unpacked.warnings,
        opaque_root: unpacked.opaque_root,
    })
}

fn layer_name(layer: &LayerBlob, keep_devices: bool) -> String {
    let devices = if keep_devices { "+devices" } else { "" };
    format!("sha256-{}{devices}", layer.diff_id.hex())
}

/// The record of a layer that is already there. Its name appears only when it is whole.
fn published(path: &Path) -> Result<Option<Record>> {
    if !path.is_dir() {
        return Ok(None);
    }
    let mut record = path.as_os_str().to_owned();
    record.push(".json");
    match read_record(Path::new(&record)) {
        // The record is published first, so a layer without one was put there by someone else.
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Err(Error::Exists { path: path.into() })
        }
        other => other.map(Some),
    }
}

fn read_record(path: &Path) -> Result<Record> {
    let mut text = vec![];
    let file = File::open(path).map_err(Error::io("read", path))?;
    file.take(1 << 20)
        .read_to_end(&mut text)
        .map_err(Error::io("read", path))?;
    serde_json::from_slice(&text).map_err(|e| Error::document(path.display().to_string(), e))
}

/// Gives all new layers their final names.
fn publish(staging: &Staging, dest: &Path, fresh: &HashMap<String, PathBuf>) -> Result<()> {
    if fresh.is_empty() {
        return Ok(());
    }
    staging.sync()?;
    for (name, path) in fresh {
        let (record, to) = (format!("{name}.json"), dest.join(name));
        std::fs::rename(staging.path.join(&record), dest.join(&record))
            .map_err(Error::io("create", dest.join(&record)))?;
        match std::fs::rename(path, &to) {
            // Another import was faster; the content is the same by its digest.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                ) => {}
            result => result.map_err(Error::io("create", &to))?,
        }
    }
    sync_dir(dest)
}

/// Top first, without what lies below a layer whose root hides everything (overlayfs itself does not look
/// at the mark on a root), and each directory once: overlayfs refuses a directory given twice, and a lower
/// occurrence adds nothing, since all it has and hides is in the higher one.
fn stack(layers: Vec<(PathBuf, Record)>) -> Vec<PathBuf> {
    let mut stack: Vec<PathBuf> = vec![];
    for (path, record) in layers.into_iter().rev() {
        if !stack.contains(&path) {
            stack.push(path);
        }
        if record.opaque_root {
            break;
        }
    }
    stack
}

/// Tells whether it had to be made.
fn make_dest(dest: &Path) -> Result<bool> {
    if dest.is_dir() {
        return open_dir(dest).map(|_| false);
    }
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dest);
    made.map(|()| true)
        .map_err(Error::io("create the directory", dest))
}
