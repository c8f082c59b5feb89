//! From the entries of a layer to an OCI image, or to the tar of a plain root.
//!
//! The output is an OCI layout with the `manifest.json` of `docker save` added, so that every `docker load`
//! understands it. The same entries give the same bytes.

use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde_json::json;

use crate::compress::Compression;
use crate::digest::{Digest, Hashing};
use crate::entry::Entry;
use crate::error::{Error, Result};
use crate::oci::{
    ConfigFile, Descriptor, ImageConfig, Index, MEDIA_CONFIG, MEDIA_INDEX, MEDIA_LAYER, MEDIA_MANIFEST,
    Manifest, Platform, REF_NAME, RootFs, RunConfig,
};
use crate::staging::unique;
use crate::tar::write::TarWriter;
use crate::walk::walk;

/// Above it, layers take twice the time to get a few per cent smaller.
const GZIP_LEVEL: flate2::Compression = flate2::Compression::new(4);

/// How to export.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// How the image is to be run.
    pub config: ImageConfig,
    /// The machine it is for.
    pub platform: Platform,
    /// Name that `docker load` gives it, like `work:latest`.
    pub name: Option<String>,
    /// How layers are packed.
    pub compression: Compression,
}

impl Default for ExportOptions {
    fn default() -> Self {
        let config = ImageConfig::default();
        ExportOptions {
            config,
            platform: Platform::host(),
            name: None,
            compression: Compression::Gzip,
        }
    }
}

/// What was written.
#[derive(Debug, Clone)]
pub struct Exported {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Digests of the unpacked layers, bottom first.
    pub layers: Vec<Digest>,
    /// Bytes of the whole output.
    pub bytes: u64,
}

/// A packed layer, waiting in a file without a name.
struct Packed {
    file: File,
    digest: Digest,
    size: u64,
    diff_id: Digest,
}

/// Writes an OCI image to the file `out`, which appears only when it is complete. `entries` become the top
/// layer; `base` are directories in overlayfs format below it, top first. Entries must come in depth-first
/// order of names, as [`crate::walk`] gives them, a hard link after its target.
pub fn export<I>(entries: I, base: &[PathBuf], out: &Path, options: &ExportOptions) -> Result<Exported>
where
    I: IntoIterator<Item = Result<Entry>>,
{
    let parent = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let partial = Partial {
        path: parent.join(format!(".export-{}", unique())),
    };
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .open(&partial.path)
        .map_err(Error::io("create", &partial.path))?;
    let exported = export_to(entries, base, &mut file, parent, options)?;
    file.sync_all().map_err(Error::io("sync", out))?;
    std::fs::rename(&partial.path, out).map_err(Error::io("create", out))?;
    crate::staging::sync_dir(parent)?;
    Ok(exported)
}

/// Removes an unfinished file; after a rename there is nothing of that name.
struct Partial {
    path: PathBuf,
}

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// As [`export`], to any writer. Layers wait in nameless files in `scratch` until their digests are known.
pub fn export_to<I, W>(
    entries: I,
    base: &[PathBuf],
    out: W,
    scratch: &Path,
    options: &ExportOptions,
) -> Result<Exported>
where
    I: IntoIterator<Item = Result<Entry>>,
    W: Write,
{
    let mut layers = vec![];
    for path in base.iter().rev() {
        layers.push(pack(walk(path)?, scratch, options.compression)?);
    }
    layers.push(pack(entries, scratch, options.compression)?);
    let config = config_json(options, &layers)?;
    let manifest = to_json(&Manifest {
        schema_version: 2,
        media_type: MEDIA_MANIFEST.into(),
        config: descriptor(MEDIA_CONFIG, &config),
        layers: layers.iter().map(|l| l.descriptor(options.compression)).collect(),
    })?;
    let mut top = descriptor(MEDIA_MANIFEST, &manifest);
    top.annotations = options
        .name
        .clone()
        .map(|name| [(REF_NAME.to_owned(), name)].into());
    let index = to_json(&Index {
        schema_version: 2,
        media_type: MEDIA_INDEX.into(),
        manifests: vec![top],
    })?;
    let saved = json!([{
        "Config": blob_path(Digest::of(&config)),
        "RepoTags": options.name.iter().collect::<Vec<_>>(),
        "Layers": layers.iter().map(|l| blob_path(l.digest)).collect::<Vec<_>>(),
    }]);
    let documents = [
        (
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ),
        ("index.json".to_owned(), index),
        ("manifest.json".to_owned(), to_json(&saved)?),
        (blob_path(Digest::of(&manifest)), manifest.clone()),
        (blob_path(Digest::of(&config)), config),
    ];
    let bytes = assemble(out, &documents, &mut layers).map_err(|e| Error::Source(e.into()))?;
    Ok(Exported {
        digest: Digest::of(&manifest),
        layers: layers.iter().map(|l| l.diff_id).collect(),
        bytes,
    })
}

/// Writes the tar of a plain root, for example of a merged view. Whiteouts and opaque marks are left out:
/// in a root there is nothing below to hide. Order as for [`export`]. Returns the number of bytes.
pub fn export_rootfs<I, W>(entries: I, out: W) -> Result<u64>
where
    I: IntoIterator<Item = Result<Entry>>,
    W: Write,
{
    let mut tar = TarWriter::new(Hashing::new(BufWriter::with_capacity(256 << 10, out)));
    write_entries(entries, &mut tar, false)?;
    let (_, _, bytes) = tar.finish().map_err(|e| Error::Source(e.into()))?.finish();
    Ok(bytes)
}

fn assemble(out: impl Write, documents: &[(String, Vec<u8>)], layers: &mut [Packed]) -> io::Result<u64> {
    let mut tar = TarWriter::new(Hashing::new(BufWriter::with_capacity(256 << 10, out)));
    tar.plain_dir("blobs/")?;
    tar.plain_dir("blobs/sha256/")?;
    let mut written = std::collections::HashSet::new();
    for (path, bytes) in documents {
        if written.insert(path.clone()) {
            tar.plain(path, bytes)?;
        }
    }
    for layer in layers {
        let path = blob_path(layer.digest);
        if written.insert(path.clone()) {
            layer.file.rewind()?;
            tar.stream(&path, layer.size, &layer.file)?;
        }
    }
    let (_, _, bytes) = tar.finish()?.finish();
    Ok(bytes)
}

impl Packed {
    fn descriptor(&self, compression: Compression) -> Descriptor {
        let suffix = match compression {
            Compression::None => "",
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
        };
        Descriptor {
            media_type: format!("{MEDIA_LAYER}{suffix}"),
            digest: self.digest.to_string(),
            size: self.size,
            platform: None,
            annotations: None,
        }
    }
}

/// Packs one layer.
fn pack<I: IntoIterator<Item = Result<Entry>>>(
    entries: I,
    scratch: &Path,
    compression: Compression,
) -> Result<Packed> {
    let file = nameless(scratch)?;
    let out = Hashing::new(BufWriter::with_capacity(256 << 10, file));
    let fail = |e: io::Error| Error::io("write a layer in", scratch)(e);
    let (packed, diff_id) = match compression {
        Compression::None => layer_tar(entries, out)?,
        Compression::Gzip => {
            let (gzip, diff_id) = layer_tar(entries, flate2::write::GzEncoder::new(out, GZIP_LEVEL))?;
            (gzip.finish().map_err(fail)?, diff_id)
        }
        Compression::Zstd => {
            let (zstd, diff_id) = layer_tar(entries, zstd::Encoder::new(out, 3).map_err(fail)?)?;
            (zstd.finish().map_err(fail)?, diff_id)
        }
    };
    let (buffered, digest, size) = packed.finish();
    let file = buffered.into_inner().map_err(|e| fail(e.into_error()))?;
    Ok(Packed {
        file,
        digest,
        size,
        diff_id,
    })
}

fn layer_tar<I: IntoIterator<Item = Result<Entry>>, W: Write>(entries: I, out: W) -> Result<(W, Digest)> {
    let mut tar = TarWriter::new(Hashing::new(out));
    write_entries(entries, &mut tar, true)?;
    let (out, diff_id, _) = tar.finish().map_err(|e| Error::Source(e.into()))?.finish();
    Ok((out, diff_id))
}

fn write_entries<I, W>(entries: I, tar: &mut TarWriter<W>, layered: bool) -> Result<()>
where
    I: IntoIterator<Item = Result<Entry>>,
    W: Write,
{
    let mut last: Option<Vec<u8>> = None;
    for entry in entries {
        let entry = entry?;
        if last.as_ref().is_some_and(|last| !in_order(last, &entry.path)) {
            let why = "entries must come in depth-first order of names, each once".to_owned();
            return Err(Error::Entry {
                entry: entry.path,
                why,
            });
        }
        last = Some(entry.path.clone());
        tar.entry(entry, layered)?;
    }
    Ok(())
}

/// Depth-first order of names; the root is first of all.
fn in_order(a: &[u8], b: &[u8]) -> bool {
    match (a.is_empty(), b.is_empty()) {
        (true, b_is_root) => !b_is_root,
        (false, true) => false,
        _ => a.split(|&c| c == b'/').lt(b.split(|&c| c == b'/')),
    }
}

fn config_json(options: &ExportOptions, layers: &[Packed]) -> Result<Vec<u8>> {
    let some = |text: &String| (!text.is_empty()).then(|| text.clone());
    let list = |items: &Vec<String>| (!items.is_empty()).then(|| items.clone());
    let config = &options.config;
    let file = ConfigFile {
        architecture: options.platform.architecture.clone(),
        os: options.platform.os.clone(),
        config: Some(RunConfig {
            user: some(&config.user),
            env: list(&config.env),
            entrypoint: list(&config.entrypoint),
            cmd: list(&config.cmd),
            working_dir: some(&config.workdir),
            labels: (!config.labels.is_empty()).then(|| config.labels.clone()),
        }),
        rootfs: Some(RootFs {
            kind: "layers".into(),
            diff_ids: layers.iter().map(|l| l.diff_id.to_string()).collect(),
        }),
    };
    to_json(&file)
}

fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::Source(e.into()))
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.into(),
        digest: Digest::of(bytes).to_string(),
        size: bytes.len() as u64,
        platform: None,
        annotations: None,
    }
}

fn blob_path(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A file that the kernel removes when it is closed, whatever happens.
fn nameless(dir: &Path) -> Result<File> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    match rustix::fs::open(dir, flags, Mode::from_raw_mode(0o600)) {
        Ok(fd) => Ok(File::from(fd)),
        // Not every filesystem has them: a name, removed at once, does the same.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::NOENT) => {
            let path = dir.join(format!(".export-{}", unique()));
            let file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path);
            let file = file.map_err(Error::io("create", &path))?;
            std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            Ok(file)
        }
        Err(e) => Err(Error::io("create a file in", dir)(e.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::in_order;

    #[test]
    fn order_is_that_of_a_walk() {
        let sorted = [&b""[..], b"a", b"a/b", b"a/b/c", b"a/c", b"a.b", b"b"];
        for pair in sorted.windows(2) {
            assert!(
                in_order(pair[0], pair[1]) && !in_order(pair[1], pair[0]),
                "{pair:?}"
            );
        }
        assert!(!in_order(b"a", b"a") && !in_order(b"", b""));
    }
}
