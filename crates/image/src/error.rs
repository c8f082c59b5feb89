//! Errors of this crate: each is one line that says what went wrong, why, and what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an image could not be imported, exported or applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory on the host could not be used.
    #[error("cannot {action} {}: {source}", Shown(path.as_os_str().as_encoded_bytes()))]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    /// The source exists, but is not an image in a known format.
    #[error("{} is not a container image: {why}; {remedy}", Shown(path.as_os_str().as_encoded_bytes()))]
    NotAnImage {
        path: PathBuf,
        why: String,
        remedy: &'static str,
    },

    /// A text that is neither an existing file nor a well-formed registry reference.
    #[error(
        "{text:?} names no image: {why}; give an image tar, an OCI layout directory or a reference like docker.io/library/alpine:3.20"
    )]
    BadReference { text: String, why: &'static str },

    /// The archive or layer cannot be read to its end.
    #[error("{subject} is damaged: {why}; save or download the image again")]
    Damaged { subject: String, why: String },

    /// The content is not what its digest says.
    #[error(
        "{subject} has digest {found} where {expected} was promised: it is damaged or was changed; save or download the image again"
    )]
    DigestMismatch {
        subject: String,
        expected: String,
        found: String,
    },

    /// Something that the image refers to is not in it.
    #[error("the image is incomplete: {what} is not in it; save it again with all its layers")]
    Missing { what: String },

    /// A JSON document of the image (index, manifest, configuration) is not understood.
    #[error(
        "{subject} is not understood: {why}; the image does not follow the OCI image specification, build or save it again"
    )]
    BadDocument { subject: String, why: String },

    /// A format or feature this crate does not read.
    #[error("{what} is not supported; {remedy}")]
    Unsupported { what: String, remedy: String },

    /// A configurable limit was passed.
    #[error("{subject} passes the limit of {limit} {unit}; if the image is to be trusted, raise {option}")]
    Limit {
        subject: String,
        limit: u64,
        unit: &'static str,
        option: &'static str,
    },

    /// An entry that would act outside the image's root, or through something that is no directory.
    #[error(
        "refused entry {} of {layer}: {why}; do not trust this image, or build it again",
        Shown(entry)
    )]
    Unsafe {
        layer: String,
        entry: Vec<u8>,
        why: String,
    },

    /// An entry could not be created on the target filesystem.
    #[error("cannot create entry {} of {layer}: {why}", Shown(entry))]
    Create {
        layer: String,
        entry: Vec<u8>,
        why: String,
    },

    /// None of the image's variants is for the wanted platform.
    #[error(
        "the image is for {available}, not for {wanted}; choose an image for {wanted}, or ask for another platform"
    )]
    NoPlatform { wanted: String, available: String },

    /// The source holds several images.
    #[error("{} holds {} images; choose one by adding its name after a colon: {}", Shown(path.as_os_str().as_encoded_bytes()), names.len(), names.join(", "))]
    Ambiguous { path: PathBuf, names: Vec<String> },

    /// The source does not hold the named image.
    #[error("{} holds no image named {name:?}; it holds: {}", Shown(path.as_os_str().as_encoded_bytes()), if names.is_empty() { "images without names".to_owned() } else { names.join(", ") })]
    NoSuchName {
        path: PathBuf,
        name: String,
        names: Vec<String>,
    },

    /// The destination is already in use.
    #[error("{} exists and is not empty; choose another directory or empty it", Shown(path.as_os_str().as_encoded_bytes()))]
    Exists { path: PathBuf },

    /// An entry given to an export or to [`crate::apply`] cannot be carried out.
    #[error("cannot write entry {}: {why}", Shown(entry))]
    Entry { entry: Vec<u8>, why: String },

    /// Whoever supplies the entries failed.
    #[error("cannot read the files to write: {0}")]
    Source(#[source] Box<dyn std::error::Error + Send + Sync>),

    /// This build cannot talk to registries.
    #[error(
        "cannot pull {reference}: this build has no registry client; build it with the `registry` feature, or give an image tar made by `docker save`"
    )]
    NoRegistryClient { reference: String },

    /// The registry did not deliver.
    #[error(
        "cannot pull {reference}: {why}; check the name, the network and the registry, or give an image tar"
    )]
    Registry { reference: String, why: String },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }

    pub(crate) fn damaged(subject: impl Into<String>, why: impl Into<String>) -> Self {
        Error::Damaged {
            subject: subject.into(),
            why: why.into(),
        }
    }

    pub(crate) fn document(subject: impl Into<String>, why: impl fmt::Display) -> Self {
        Error::BadDocument {
            subject: subject.into(),
            why: one_line(&why.to_string()),
        }
    }
}

/// Shows bytes of a hostile archive on one line: control and non-text bytes escaped, length bounded.
pub(crate) struct Shown<'a>(pub &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MAX: usize = 200;
        let cut = &self.0[..self.0.len().min(MAX)];
        let text = String::from_utf8_lossy(cut);
        write!(f, "\"")?;
        for c in text.chars() {
            if c.is_control() || c == '"' || c == '\\' {
                write!(f, "{}", c.escape_default())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        write!(f, "\"")?;
        if self.0.len() > MAX {
            write!(f, "... ({} bytes)", self.0.len())?;
        }
        Ok(())
    }
}

/// Text from elsewhere, on one line and of bounded length.
pub(crate) fn one_line(text: &str) -> String {
    let mut line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(300)
        .collect();
    line.truncate(line.trim_end().len());
    line
}

/// Shows bytes as [`Shown`] does, as a string.
pub(crate) fn shown(bytes: &[u8]) -> String {
    Shown(bytes).to_string()
}
