//! Pulling images from registries (OCI distribution specification) into an OCI layout on disk, which is then
//! imported like any other. What is in the cache already is not fetched again.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use rustix::fs::FlockOperation;
use tokio::io::AsyncWrite;

use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result, one_line};
use crate::limits::{Limits, limit};
use crate::oci::{self, Descriptor, Index, Manifest, Platform, REF_NAME};
use crate::source::Reference;
use crate::staging::{sync_dir, unique};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest silence of a registry.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const ACCEPTED: [&str; 4] = [
    oci::MEDIA_MANIFEST,
    oci::MEDIA_INDEX,
    oci::DOCKER_MANIFEST,
    oci::DOCKER_LIST,
];

/// Who asks; without it, pulls are anonymous.
#[derive(Clone)]
pub struct Credentials {
    /// User name.
    pub user: String,
    /// Password or token.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Pulls an image into the layout directory `cache` (made if it is missing; shared by all images pulled
/// into it). Blocks; may be called with or without an async runtime around.
pub(crate) fn pull(
    reference: &Reference,
    cache: &Path,
    platform: &Platform,
    limits: &Limits,
    credentials: Option<&Credentials>,
) -> Result<()> {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::io("start the registry client for", cache))?;
        runtime.block_on(Pull::new(reference, cache, platform, limits, credentials)?.run())
    };
    // A thread of its own: a runtime must not be started inside another one.
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|_| {
        Err(Error::Registry {
            reference: reference.to_string(),
            why: "the registry client panicked".into(),
        })
    })
}

struct Pull<'a> {
    client: oci_client::Client,
    auth: RegistryAuth,
    image: oci_client::Reference,
    reference: &'a Reference,
    cache: &'a Path,
    platform: &'a Platform,
    limits: &'a Limits,
    left: u64,
}

impl<'a> Pull<'a> {
    fn new(
        reference: &'a Reference,
        cache: &'a Path,
        platform: &'a Platform,
        limits: &'a Limits,
        credentials: Option<&Credentials>,
    ) -> Result<Self> {
        let blobs = cache.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).map_err(Error::io("create the directory", &blobs))?;
        let (registry, repository) = (reference.registry.clone(), reference.repository.clone());
        let image = match (&reference.digest, &reference.tag) {
            (Some(digest), _) => oci_client::Reference::with_digest(registry, repository, digest.clone()),
            (None, tag) => oci_client::Reference::with_tag(
                registry,
                repository,
                tag.clone().unwrap_or_else(|| "latest".into()),
            ),
        };
        let local = is_local(&reference.registry);
        let config = ClientConfig {
            // Like docker: a registry on this machine needs no encryption, and no proxy.
            protocol: if local {
                ClientProtocol::Http
            } else {
                ClientProtocol::Https
            },
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: concat!("deltabox/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let auth = match credentials {
            Some(c) => RegistryAuth::Basic(c.user.clone(), c.password.clone()),
            None => RegistryAuth::Anonymous,
        };
        let client = oci_client::Client::new(config);
        Ok(Pull {
            client,
            auth,
            image,
            reference,
            cache,
            platform,
            limits,
            left: limits.bytes,
        })
    }

    async fn run(mut self) -> Result<()> {
        let top = match self
            .reference
            .digest
            .as_deref()
            .and_then(|d| Digest::parse(d).ok())
        {
            // A digest says it all: what is there already need not be asked for.
            Some(digest) => self.manifest_at(digest).await?,
            None => self.fetch_manifest(&self.image.clone(), None).await?,
        };
        let mut bytes = top.clone();
        for _ in 0..3 {
            let Ok(index) = serde_json::from_slice::<Index>(&bytes) else {
                break;
            };
            if index.manifests.is_empty() {
                break;
            }
            let digest = self.choose(&index)?;
            bytes = self.manifest_at(digest).await?;
        }
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|e| Error::document(format!("the manifest of {}", self.reference), e))?;
        if manifest.layers.len() > self.limits.layers {
            return Err(limit(
                "the image",
                self.limits.layers as u64,
                "layers",
                "Limits::layers",
            ));
        }
        for descriptor in std::iter::once(&manifest.config).chain(&manifest.layers) {
            self.fetch_blob(descriptor).await?;
        }
        self.record(&top)
    }

    fn choose(&self, index: &Index) -> Result<Digest> {
        let images = || index.manifests.iter().filter(|d| !oci::is_attestation(d));
        let fitting = images().find(|d| {
            d.platform
                .as_ref()
                .is_none_or(|p| self.platform.matches(&p.architecture, &p.os))
        });
        match fitting {
            Some(descriptor) => parse_digest(&descriptor.digest),
            None => Err(Error::NoPlatform {
                wanted: self.platform.to_string(),
                available: oci::list(
                    images()
                        .filter_map(|d| d.platform.as_ref())
                        .map(|p| format!("{}/{}", p.os, p.architecture)),
                ),
            }),
        }
    }

    async fn manifest_at(&mut self, digest: Digest) -> Result<Vec<u8>> {
        if let Some(bytes) = self.cached(digest)? {
            return Ok(bytes);
        }
        let image = self.image.clone_with_digest(digest.to_string());
        self.fetch_manifest(&image, Some(digest)).await
    }

    async fn fetch_manifest(
        &mut self,
        image: &oci_client::Reference,
        expected: Option<Digest>,
    ) -> Result<Vec<u8>> {
        let pulled = self.client.pull_manifest_raw(image, &self.auth, &ACCEPTED).await;
        let (bytes, _) = pulled.map_err(|e| self.failed(&e))?;
        if bytes.len() as u64 > self.limits.metadata_bytes {
            return Err(limit(
                "a manifest",
                self.limits.metadata_bytes,
                "bytes",
                "Limits::metadata_bytes",
            ));
        }
        let found = Digest::of(&bytes);
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            return Err(oci::mismatch("a manifest from the registry", expected, found));
        }
        let mut sink = Sink::new(self.cache, bytes.len() as u64)?;
        sink.write(&bytes).map_err(Error::io("write", self.cache))?;
        sink.publish(found)?;
        Ok(bytes.to_vec())
    }

    /// A manifest in the cache, if its content is still what its name says.
    fn cached(&self, digest: Digest) -> Result<Option<Vec<u8>>> {
        let path = blob_path(self.cache, digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("read", path)(e)),
        };
        let mut bytes = vec![];
        file.take(self.limits.metadata_bytes)
            .read_to_end(&mut bytes)
            .map_err(Error::io("read", &path))?;
        Ok((Digest::of(&bytes) == digest).then_some(bytes))
    }

    async fn fetch_blob(&mut self, descriptor: &Descriptor) -> Result<()> {
        let digest = parse_digest(&descriptor.digest)?;
        let path = blob_path(self.cache, digest);
        // The import checks the digest of everything it reads; the length tells a whole file here.
        if std::fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() == descriptor.size) {
            return Ok(());
        }
        if descriptor.size > self.left {
            return Err(limit("the image", self.limits.bytes, "bytes", "Limits::bytes"));
        }
        self.left -= descriptor.size;
        let mut sink = Sink::new(self.cache, descriptor.size)?;
        let pulled = self
            .client
            .pull_blob(&self.image, descriptor.digest.as_str(), &mut sink)
            .await;
        pulled.map_err(|e| self.failed(&e))?;
        sink.publish(digest)
    }

    /// Adds the image to the layout's index, under its full name.
    fn record(&self, top: &[u8]) -> Result<()> {
        let lock = crate::staging::open_dir(self.cache)?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)
            .map_err(|e| Error::io("lock", self.cache)(e.into()))?;
        let path = self.cache.join("index.json");
        let mut index = match std::fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|e| Error::document(path.display().to_string(), e))?
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Index {
                schema_version: 2,
                media_type: oci::MEDIA_INDEX.into(),
                manifests: vec![],
            },
            Err(e) => return Err(Error::io("read", path)(e)),
        };
        let name = self.reference.to_string();
        let named = |d: &Descriptor| d.annotations.as_ref().and_then(|a| a.get(REF_NAME)) == Some(&name);
        index.manifests.retain(|d| !named(d));
        index.manifests.push(Descriptor {
            media_type: media_type(top),
            digest: Digest::of(top).to_string(),
            size: top.len() as u64,
            platform: None,
            annotations: Some([(REF_NAME.to_owned(), name.clone())].into()),
        });
        let json = serde_json::to_vec(&index).map_err(|e| Error::Source(e.into()))?;
        replace(
            &self.cache.join("oci-layout"),
            br#"{"imageLayoutVersion":"1.0.0"}"#,
        )?;
        replace(&path, &json)?;
        sync_dir(self.cache)
    }

    fn failed(&self, error: &OciDistributionError) -> Error {
        // The whole chain: the outermost text alone is often only "error sending request".
        let mut why = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(inner) = source {
            let text = inner.to_string();
            if !why.contains(&text) {
                why = format!("{why}: {text}");
            }
            source = inner.source();
        }
        Error::Registry {
            reference: self.reference.to_string(),
            why: one_line(&why),
        }
    }
}

fn is_local(registry: &str) -> bool {
    let host = registry
        .strip_prefix("[::1]")
        .map_or_else(|| registry.split(':').next().unwrap_or(""), |_| "localhost");
    host == "localhost" || host.parse::<std::net::Ipv4Addr>().is_ok_and(|a| a.is_loopback())
}

fn parse_digest(text: &str) -> Result<Digest> {
    Digest::parse(text).map_err(|why| {
        Error::document(
            "the registry's manifest",
            format!("the digest {:?}: {why}", one_line(text)),
        )
    })
}

fn blob_path(cache: &Path, digest: Digest) -> PathBuf {
    cache.join("blobs/sha256").join(digest.hex())
}

/// The media type a manifest states itself; empty lets the reader find out.
fn media_type(bytes: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: Option<String>,
    }
    serde_json::from_slice::<Typed>(bytes)
        .ok()
        .and_then(|t| t.media_type)
        .unwrap_or_default()
}

fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension(format!("new-{}", unique()));
    let write = || {
        std::fs::write(&temporary, bytes)?;
        File::open(&temporary)?.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    let result = write();
    if result.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    result.map_err(Error::io("write", path))
}

/// A blob on its way into the cache: bounded, hashed, under a temporary name until it is found right.
struct Sink {
    path: PathBuf,
    cache: PathBuf,
    out: Option<Hashing<File>>,
    left: u64,
}

impl Sink {
    fn new(cache: &Path, size: u64) -> Result<Self> {
        let path = cache.join(format!(".pull-{}", unique()));
        let file = File::options()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(Error::io("create", &path))?;
        Ok(Sink {
            path,
            cache: cache.into(),
            out: Some(Hashing::new(file)),
            left: size,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(io::Error::other("the registry sends more than it announced"));
        }
        let out = self.out.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        out.write_all(bytes)?;
        self.left -= bytes.len() as u64;
        Ok(bytes.len())
    }

    fn publish(mut self, expected: Digest) -> Result<()> {
        let Some(out) = self.out.take() else { return Ok(()) };
        let (file, found, _) = out.finish();
        if found != expected {
            return Err(oci::mismatch("a file from the registry", expected, found));
        }
        file.sync_all().map_err(Error::io("sync", &self.path))?;
        let path = blob_path(&self.cache, expected);
        std::fs::rename(&self.path, &path).map_err(Error::io("create", path))
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // After a rename there is nothing of that name.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl AsyncWrite for Sink {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.write(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
