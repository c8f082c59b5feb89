//! Builders of archives and images, written apart from the code under test.

use std::path::{Path, PathBuf};

use deltabox_image::{Digest, ImageSource, Platform};

/// A tar archive made by hand; every field can be wrong on purpose.
#[derive(Default, Clone)]
pub struct Tar(pub Vec<u8>);

/// One header's fields.
#[derive(Clone)]
pub struct Head<'a> {
    pub path: &'a [u8],
    pub kind: u8,
    pub link: &'a [u8],
    pub mode: u32,
    pub uid: u32,
    pub mtime: u64,
    pub device: (u32, u32),
}

impl Default for Head<'_> {
    fn default() -> Self {
        Head {
            path: b"",
            kind: b'0',
            link: b"",
            mode: 0o644,
            uid: 0,
            mtime: 1_600_000_000,
            device: (0, 0),
        }
    }
}

impl Tar {
    pub fn head(mut self, head: Head<'_>, size: u64) -> Self {
        let mut block = [0u8; 512];
        block[..head.path.len().min(100)].copy_from_slice(&head.path[..head.path.len().min(100)]);
        let mut put =
            |range: std::ops::Range<usize>, text: String| block[range].copy_from_slice(text.as_bytes());
        put(100..107, format!("{:07o}", head.mode));
        put(108..115, format!("{:07o}", head.uid));
        put(116..123, format!("{:07o}", head.uid));
        put(124..135, format!("{size:011o}"));
        put(136..147, format!("{:011o}", head.mtime));
        put(329..336, format!("{:07o}", head.device.0));
        put(337..344, format!("{:07o}", head.device.1));
        block[156] = head.kind;
        block[157..157 + head.link.len().min(100)].copy_from_slice(&head.link[..head.link.len().min(100)]);
        block[257..265].copy_from_slice(b"ustar\x0000");
        seal(&mut block);
        self.0.extend_from_slice(&block);
        self
    }

    pub fn data(mut self, data: &[u8]) -> Self {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, path: &str, data: &[u8]) -> Self {
        self.head(
            Head {
                path: path.as_bytes(),
                ..Head::default()
            },
            data.len() as u64,
        )
        .data(data)
    }

    pub fn dir(self, path: &str) -> Self {
        self.head(
            Head {
                path: path.as_bytes(),
                kind: b'5',
                mode: 0o755,
                ..Head::default()
            },
            0,
        )
    }

    pub fn symlink(self, path: &str, link: &str) -> Self {
        self.head(
            Head {
                path: path.as_bytes(),
                kind: b'2',
                link: link.as_bytes(),
                mode: 0o777,
                ..Head::default()
            },
            0,
        )
    }

    pub fn hard_link(self, path: &str, link: &str) -> Self {
        self.head(
            Head {
                path: path.as_bytes(),
                kind: b'1',
                link: link.as_bytes(),
                ..Head::default()
            },
            0,
        )
    }

    /// A pax header for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = vec![];
        for (key, value) in records {
            let mut len = key.len() + value.len() + 3;
            len = (1..7)
                .map(|digits| len + digits)
                .find(|n| n.to_string().len() == n - len)
                .unwrap();
            body.extend_from_slice(format!("{len} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.head(
            Head {
                path: b"pax",
                kind: b'x',
                ..Head::default()
            },
            body.len() as u64,
        )
        .data(&body)
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

pub fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut out = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// One image's files: names and content of an OCI layout.
pub fn layout(layers: &[(Vec<u8>, Vec<u8>)]) -> Vec<(String, Vec<u8>)> {
    layout_for(layers, &Platform::host().architecture)
}

/// `layers` are (packed, plain), bottom first.
pub fn layout_for(layers: &[(Vec<u8>, Vec<u8>)], architecture: &str) -> Vec<(String, Vec<u8>)> {
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|(_, plain)| Digest::of(plain).to_string())
        .collect();
    let config = format!(
        r#"{{"architecture":"{architecture}","os":"linux","config":{{"Env":["PATH=/bin","A=b c"],"Cmd":["/bin/sh"],"Entrypoint":null,"WorkingDir":"/srv","User":"1000:1000"}},"rootfs":{{"type":"layers","diff_ids":{diff_ids:?}}}}}"#
    );
    let descriptor = |bytes: &[u8], kind: &str| {
        format!(
            r#"{{"mediaType":"{kind}","digest":"{}","size":{}}}"#,
            Digest::of(bytes),
            bytes.len()
        )
    };
    let listed: Vec<String> = layers
        .iter()
        .map(|(packed, _)| descriptor(packed, "application/vnd.oci.image.layer.v1.tar"))
        .collect();
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
        descriptor(config.as_bytes(), "application/vnd.oci.image.config.v1+json"),
        listed.join(",")
    );
    let top = descriptor(manifest.as_bytes(), "application/vnd.oci.image.manifest.v1+json");
    let mut files = vec![
        (
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ),
        (
            "index.json".to_owned(),
            format!(r#"{{"schemaVersion":2,"manifests":[{top}]}}"#).into_bytes(),
        ),
    ];
    for bytes in [manifest.into_bytes(), config.into_bytes()] {
        files.push((blob(&bytes), bytes));
    }
    for (packed, _) in layers {
        files.push((blob(packed), packed.clone()));
    }
    files
}

pub fn blob(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", Digest::of(bytes).hex())
}

/// The files of a `docker save` archive of the old form.
pub fn docker_save(layers: &[Vec<u8>]) -> Vec<(String, Vec<u8>)> {
    let diff_ids: Vec<String> = layers.iter().map(|l| Digest::of(l).to_string()).collect();
    let architecture = Platform::host().architecture;
    let config = format!(
        r#"{{"architecture":"{architecture}","os":"linux","config":{{"Env":["A=1"],"Cmd":["sh"]}},"rootfs":{{"type":"layers","diff_ids":{diff_ids:?}}}}}"#
    );
    let config_name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let names: Vec<String> = (0..layers.len()).map(|i| format!("{i:064x}/layer.tar")).collect();
    let manifest = format!(r#"[{{"Config":"{config_name}","RepoTags":["work:latest"],"Layers":{names:?}}}]"#);
    let mut files = vec![
        ("manifest.json".to_owned(), manifest.into_bytes()),
        (config_name, config.into_bytes()),
    ];
    files.extend(names.into_iter().zip(layers.iter().cloned()));
    files
}

pub fn write_tar(path: &Path, files: &[(String, Vec<u8>)]) -> ImageSource {
    let mut tar = Tar::default();
    for (name, bytes) in files {
        tar = tar.file(name, bytes);
    }
    std::fs::write(path, tar.end()).unwrap();
    source(path)
}

pub fn write_dir(path: &Path, files: &[(String, Vec<u8>)]) -> ImageSource {
    for (name, bytes) in files {
        let file = path.join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, bytes).unwrap();
    }
    source(path)
}

pub fn source(path: &Path) -> ImageSource {
    ImageSource::parse(path.to_str().unwrap()).unwrap()
}

/// An image tar with these plain layers, bottom first.
pub fn image(dir: &Path, layers: &[Vec<u8>]) -> ImageSource {
    let pairs: Vec<_> = layers.iter().map(|l| (l.clone(), l.clone())).collect();
    write_tar(&dir.join("image.tar"), &layout(&pairs))
}

/// Everything about a tree that a layer has to carry, as text, sorted; hard links by a number per file.
pub fn snapshot(root: &Path) -> Vec<String> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    fn visit(root: &Path, path: &Path, seen: &mut Vec<(u64, u64)>, out: &mut Vec<String>) {
        let meta = std::fs::symlink_metadata(path).unwrap();
        let name = path.strip_prefix(root).unwrap().display().to_string();
        let kind = meta.file_type();
        if kind.is_char_device() && meta.rdev() == 0 {
            // Only its being there means anything.
            out.push(format!("{name:?} whiteout"));
            return;
        }
        let content = if kind.is_file() {
            content(path)
        } else if kind.is_symlink() {
            std::fs::read_link(path).unwrap().display().to_string()
        } else {
            String::new()
        };
        let mut link = String::new();
        if !kind.is_dir() && meta.nlink() > 1 {
            let id = (meta.dev(), meta.ino());
            let at = seen.iter().position(|s| *s == id).unwrap_or_else(|| {
                seen.push(id);
                seen.len() - 1
            });
            link = format!(" link#{at}");
        }
        let mut xattrs = vec![];
        let mut names = vec![0; 65536];
        let n = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
        for attr in names[..n].split(|&b| b == 0).filter(|a| !a.is_empty()) {
            let mut value = vec![0; 65536];
            let n = rustix::fs::lgetxattr(path, attr, &mut value[..]).unwrap();
            xattrs.push(format!("{}={:?}", String::from_utf8_lossy(attr), &value[..n]));
        }
        xattrs.sort();
        let size = if kind.is_file() { meta.len() } else { 0 };
        let sparse = kind.is_file() && meta.blocks() * 512 + 65536 < meta.len();
        out.push(format!(
            "{name:?} {:o} {}:{} {}.{:09} rdev={} size={size} sparse={sparse} {content}{link} {xattrs:?}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.rdev(),
        ));
        if kind.is_dir() {
            let mut children: Vec<PathBuf> = std::fs::read_dir(path)
                .unwrap()
                .map(|e| e.unwrap().path())
                .collect();
            children.sort();
            for child in children {
                visit(root, &child, seen, out);
            }
        }
    }
    let mut out = vec![];
    visit(root, root, &mut vec![], &mut out);
    out
}

/// Names in a directory.
pub fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return vec![];
    };
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// A short text for a file's content; cheap for holes.
fn content(path: &Path) -> String {
    use std::hash::{Hash, Hasher};
    use std::io::Read;
    let mut hash = std::hash::DefaultHasher::new();
    let mut file = std::fs::File::open(path).unwrap();
    let (mut buffer, mut at) = (vec![0; 1 << 20], 0u64);
    loop {
        let n = file.read(&mut buffer).unwrap();
        if n == 0 {
            return format!("{:016x}", hash.finish());
        }
        if buffer[..n] != vec![0; n] {
            for (i, byte) in buffer[..n].iter().enumerate().filter(|(_, byte)| **byte != 0) {
                (at + i as u64, byte).hash(&mut hash);
            }
        }
        at += n as u64;
    }
}
