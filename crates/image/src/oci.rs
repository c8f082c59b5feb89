//! The documents of an image: index, manifest, configuration (OCI image specification 1.1, and the
//! `manifest.json` of `docker save`).

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::blobs::Blobs;
use crate::digest::Digest;
use crate::error::{Error, Result, one_line};
use crate::limits::{Limits, limit};

/// The machine an image is for, in the words of the specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `amd64`, `arm64`, ...
    pub architecture: String,
    /// `linux`
    pub os: String,
}

impl Platform {
    /// The machine this program runs on.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Platform {
            architecture: architecture.into(),
            os: "linux".into(),
        }
    }

    pub(crate) fn matches(&self, architecture: &str, os: &str) -> bool {
        // Images made by hand often leave these empty.
        (architecture.is_empty() || architecture == self.architecture) && (os.is_empty() || os == self.os)
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

/// What an image says about running it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `NAME=VALUE`
    pub env: Vec<String>,
    /// Directory to start in; empty if the image does not say.
    pub workdir: String,
    /// `user`, `uid`, `user:group`, `uid:gid`; empty if the image does not say.
    pub user: String,
    /// Command prefix.
    pub entrypoint: Vec<String>,
    /// Default command, or arguments of the entry point.
    pub cmd: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

pub(crate) const MEDIA_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const MEDIA_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const MEDIA_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const MEDIA_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
const DOCKER_NAME: &str = "io.containerd.image.name";
#[cfg(feature = "registry")]
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    #[serde(default)]
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<DescriptorPlatform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DescriptorPlatform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    #[serde(default)]
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    #[serde(default)]
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct ConfigFile {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub config: Option<RunConfig>,
    #[serde(default)]
    pub rootfs: Option<RootFs>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct RunConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct RootFs {
    #[serde(default, rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub diff_ids: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// One image, found and read; its layers are not read yet.
pub(crate) struct Resolved {
    pub config: ImageConfig,
    /// Digest of the manifest, or of the configuration where there is no manifest.
    pub digest: Digest,
    /// Bottom first.
    pub layers: Vec<LayerBlob>,
}

/// One layer as the image describes it.
pub(crate) struct LayerBlob {
    /// Name of its file.
    pub file: String,
    /// Digest of that file, where the image promises one.
    pub digest: Option<Digest>,
    /// Digest of the unpacked tar.
    pub diff_id: Digest,
}

/// Reads the documents of the wanted image.
pub(crate) fn resolve(
    blobs: &Blobs,
    name: Option<&str>,
    platform: &Platform,
    limits: &Limits,
) -> Result<Resolved> {
    let reader = Reader {
        blobs,
        platform,
        limits,
    };
    if let Some(bytes) = blobs.document("index.json", limits.metadata_bytes)? {
        return reader.layout(&bytes, name);
    }
    if let Some(bytes) = blobs.document("manifest.json", limits.metadata_bytes)? {
        return reader.saved(&bytes, name);
    }
    let old = blobs.file("repositories")?.is_some();
    Err(Error::NotAnImage {
        path: blobs.path().to_owned(),
        why: if old {
            "it was saved by a Docker older than 1.10".into()
        } else {
            "it holds neither index.json nor manifest.json".into()
        },
        remedy: if old {
            "load it into a newer Docker and save it again"
        } else {
            "give an OCI layout or the output of `docker save` (`docker export` writes a plain root: unpack it and use the directory)"
        },
    })
}

struct Reader<'a> {
    blobs: &'a Blobs,
    platform: &'a Platform,
    limits: &'a Limits,
}

impl Reader<'_> {
    fn layout(&self, bytes: &[u8], name: Option<&str>) -> Result<Resolved> {
        let index: Index = parse("index.json", bytes)?;
        let candidates: Vec<&Descriptor> = index.manifests.iter().filter(|d| !is_attestation(d)).collect();
        let names = || -> Vec<String> {
            let mut names: Vec<String> = candidates
                .iter()
                .flat_map(|d| descriptor_names(d))
                .map(one_line)
                .collect();
            names.sort();
            names.dedup();
            names
        };
        let mut chosen: Vec<&Descriptor> = match name {
            None => candidates.clone(),
            Some(name) => candidates
                .iter()
                .copied()
                .filter(|d| d.digest == name || descriptor_names(d).any(|n| same_name(n, name)))
                .collect(),
        };
        if chosen.is_empty() {
            return Err(match name {
                Some(name) => Error::NoSuchName {
                    path: self.blobs.path().into(),
                    name: name.into(),
                    names: names(),
                },
                None => Error::document("index.json", "it lists no image"),
            });
        }
        // Several tags of the same manifest are one image.
        chosen.dedup_by(|a, b| a.digest == b.digest);
        if chosen.len() > 1 {
            let fitting: Vec<&Descriptor> = chosen
                .iter()
                .copied()
                .filter(|d| d.platform.is_some() && self.fits(d))
                .collect();
            match fitting[..] {
                [one] => return self.follow(one, 0),
                _ => {
                    let mut names = names();
                    if names.len() < 2 {
                        names = chosen.iter().map(|d| one_line(&d.digest)).collect();
                    }
                    return Err(Error::Ambiguous {
                        path: self.blobs.path().into(),
                        names,
                    });
                }
            }
        }
        self.follow(chosen[0], 0)
    }

    fn fits(&self, descriptor: &Descriptor) -> bool {
        descriptor
            .platform
            .as_ref()
            .is_none_or(|p| self.platform.matches(&p.architecture, &p.os))
    }

    /// From a descriptor to an image, through at most a few nested indexes.
    fn follow(&self, descriptor: &Descriptor, depth: u32) -> Result<Resolved> {
        let (bytes, digest, file) = self.blob(&descriptor.digest)?;
        #[derive(Deserialize)]
        struct Probe {
            manifests: Option<serde::de::IgnoredAny>,
        }
        let is_index = matches!(descriptor.media_type.as_str(), MEDIA_INDEX | DOCKER_LIST)
            || (descriptor.media_type.is_empty() && parse::<Probe>(&file, &bytes)?.manifests.is_some());
        if !is_index {
            return self.manifest(&file, &bytes, digest);
        }
        if depth >= 3 {
            return Err(Error::document(file, "indexes are nested too deeply"));
        }
        let index: Index = parse(&file, &bytes)?;
        let images: Vec<&Descriptor> = index.manifests.iter().filter(|d| !is_attestation(d)).collect();
        match images.iter().find(|d| self.fits(d)) {
            Some(descriptor) => self.follow(descriptor, depth + 1),
            None => Err(Error::NoPlatform {
                wanted: self.platform.to_string(),
                available: list(
                    images
                        .iter()
                        .filter_map(|d| d.platform.as_ref())
                        .map(|p| format!("{}/{}", p.os, p.architecture)),
                ),
            }),
        }
    }

    fn manifest(&self, file: &str, bytes: &[u8], digest: Digest) -> Result<Resolved> {
        let manifest: Manifest = parse(file, bytes)?;
        if !manifest.config.media_type.is_empty() && !manifest.config.media_type.contains("image") {
            return Err(Error::Unsupported {
                what: format!(
                    "{file}: an artifact of type {:?}",
                    one_line(&manifest.config.media_type)
                ),
                remedy: "give a container image".into(),
            });
        }
        let (config, _, config_file) = self.blob(&manifest.config.digest)?;
        let (config, diff_ids) = self.config(&config_file, &config, manifest.layers.len())?;
        let mut layers = vec![];
        for (layer, diff_id) in manifest.layers.iter().zip(diff_ids) {
            if layer.media_type.contains("encrypted") {
                return Err(Error::Unsupported {
                    what: format!("the encrypted layer {}", one_line(&layer.digest)),
                    remedy: "decrypt the image first".into(),
                });
            }
            let (digest, file) = blob_file(&layer.digest)?;
            layers.push(LayerBlob {
                file,
                digest: Some(digest),
                diff_id,
            });
        }
        Ok(Resolved {
            config,
            digest,
            layers,
        })
    }

    /// The `manifest.json` of `docker save`.
    fn saved(&self, bytes: &[u8], name: Option<&str>) -> Result<Resolved> {
        let images: Vec<Saved> = parse("manifest.json", bytes)?;
        let tags = |image: &Saved| image.repo_tags.clone().unwrap_or_default();
        let names = || {
            images
                .iter()
                .flat_map(tags)
                .map(|n| one_line(&n))
                .collect::<Vec<_>>()
        };
        let chosen: Vec<&Saved> = images
            .iter()
            .filter(|image| name.is_none_or(|name| tags(image).iter().any(|n| same_name(n, name))))
            .collect();
        let image = match (&chosen[..], name) {
            ([one], _) => one,
            ([], None) => return Err(Error::document("manifest.json", "it lists no image")),
            ([], Some(name)) => {
                return Err(Error::NoSuchName {
                    path: self.blobs.path().into(),
                    name: name.into(),
                    names: names(),
                });
            }
            (..) => {
                return Err(Error::Ambiguous {
                    path: self.blobs.path().into(),
                    names: names(),
                });
            }
        };
        let bytes = self
            .blobs
            .document(&image.config, self.limits.metadata_bytes)?
            .ok_or_else(|| Error::Missing {
                what: format!("the configuration {:?}", one_line(&image.config)),
            })?;
        let digest = Digest::of(&bytes);
        if let Some(expected) = digest_in_name(&image.config).filter(|expected| *expected != digest) {
            return Err(mismatch(&image.config, expected, digest));
        }
        let (config, diff_ids) = self.config(&image.config, &bytes, image.layers.len())?;
        let layers = image.layers.iter().zip(diff_ids);
        let layers = layers
            .map(|(file, diff_id)| LayerBlob {
                file: file.clone(),
                digest: None,
                diff_id,
            })
            .collect();
        Ok(Resolved {
            config,
            digest,
            layers,
        })
    }

    fn blob(&self, digest: &str) -> Result<(Vec<u8>, Digest, String)> {
        let (expected, file) = blob_file(digest)?;
        let bytes = self
            .blobs
            .document(&file, self.limits.metadata_bytes)?
            .ok_or_else(|| Error::Missing {
                what: format!("the document {file:?}"),
            })?;
        let found = Digest::of(&bytes);
        if found != expected {
            return Err(mismatch(&file, expected, found));
        }
        Ok((bytes, found, file))
    }

    fn config(&self, file: &str, bytes: &[u8], layers: usize) -> Result<(ImageConfig, Vec<Digest>)> {
        let config: ConfigFile = parse(file, bytes)?;
        if !self.platform.matches(&config.architecture, &config.os) {
            return Err(Error::NoPlatform {
                wanted: self.platform.to_string(),
                available: one_line(&format!("{}/{}", config.os, config.architecture)),
            });
        }
        let diff_ids = config.rootfs.unwrap_or_default().diff_ids;
        if layers > self.limits.layers {
            return Err(limit(
                "the image",
                self.limits.layers as u64,
                "layers",
                "Limits::layers",
            ));
        }
        if diff_ids.len() != layers {
            return Err(Error::document(
                file,
                format!(
                    "it names {} layers where the manifest names {layers}",
                    diff_ids.len()
                ),
            ));
        }
        let diff_ids = diff_ids
            .iter()
            .map(|text| {
                Digest::parse(text).map_err(|why| {
                    Error::document(file, format!("the layer digest {:?}: {why}", one_line(text)))
                })
            })
            .collect::<Result<_>>()?;
        Ok((run_config(file, config.config.unwrap_or_default())?, diff_ids))
    }
}

fn run_config(file: &str, run: RunConfig) -> Result<ImageConfig> {
    let config = ImageConfig {
        env: run.env.unwrap_or_default(),
        workdir: run.working_dir.unwrap_or_default(),
        user: run.user.unwrap_or_default(),
        entrypoint: run.entrypoint.unwrap_or_default(),
        cmd: run.cmd.unwrap_or_default(),
        labels: run.labels.unwrap_or_default(),
    };
    let texts = config.env.iter().chain(&config.entrypoint).chain(&config.cmd);
    if texts
        .chain([&config.workdir, &config.user])
        .any(|text| text.contains('\0'))
    {
        return Err(Error::document(file, "a text in it holds a NUL byte"));
    }
    Ok(config)
}

fn parse<'a, T: Deserialize<'a>>(file: &str, bytes: &'a [u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::document(format!("the document {file:?}"), e))
}

fn blob_file(digest: &str) -> Result<(Digest, String)> {
    let parsed = Digest::parse(digest).map_err(|why| {
        Error::document(
            "the image's manifest",
            format!("the digest {:?}: {why}", one_line(digest)),
        )
    })?;
    Ok((parsed, format!("blobs/sha256/{}", parsed.hex())))
}

pub(crate) fn mismatch(subject: &str, expected: Digest, found: Digest) -> Error {
    Error::DigestMismatch {
        subject: one_line(subject),
        expected: expected.to_string(),
        found: found.to_string(),
    }
}

/// `docker save` names the configuration after its digest.
fn digest_in_name(file: &str) -> Option<Digest> {
    let name = file.rsplit('/').next()?;
    Digest::from_hex(name.strip_suffix(".json").unwrap_or(name))
}

fn descriptor_names(descriptor: &Descriptor) -> impl Iterator<Item = &str> {
    let annotation = |key| {
        descriptor
            .annotations
            .as_ref()
            .and_then(|a| a.get(key))
            .map(String::as_str)
    };
    annotation(DOCKER_NAME).or(annotation(REF_NAME)).into_iter()
}

/// Build tools list what they attest about an image beside it, as an image for no platform.
pub(crate) fn is_attestation(descriptor: &Descriptor) -> bool {
    let unknown = descriptor.platform.as_ref().is_some_and(|p| p.os == "unknown");
    let marked = descriptor
        .annotations
        .as_ref()
        .is_some_and(|a| a.contains_key("vnd.docker.reference.type"));
    unknown || marked
}

/// Whether a name in the image is what the user wrote, completed or not.
fn same_name(stored: &str, wanted: &str) -> bool {
    let full = |text: &str| crate::source::Reference::parse(text).map(|r| r.to_string()).ok();
    stored == wanted || full(stored).is_some_and(|stored| full(wanted) == Some(stored))
}

pub(crate) fn list(items: impl Iterator<Item = String>) -> String {
    let mut items: Vec<String> = items.map(|i| one_line(&i)).collect();
    items.dedup();
    if items.is_empty() {
        "an unknown platform".into()
    } else {
        items.join(", ")
    }
}
