//! Where an image comes from, as a user names it.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A source of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// A tar archive or an OCI layout directory, and the name of one image in it.
    Local { path: PathBuf, name: Option<String> },
    /// An image in a registry.
    Registry(Reference),
}

/// A name of an image in a registry, completed as `docker pull` does it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Host, with a port where it has one.
    pub registry: String,
    /// Path of the repository.
    pub repository: String,
    /// Tag; `latest` if neither tag nor digest was given.
    pub tag: Option<String>,
    /// Digest (`sha256:...`), stronger than the tag.
    pub digest: Option<String>,
}

impl ImageSource {
    /// What exists as a path is that path; what exists up to a colon is that path and the name of an image
    /// in it (`images.tar:alpine:3.20`); everything else is a reference into a registry.
    pub fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(bad(text, "it is empty"));
        }
        if Path::new(text).exists() {
            return Ok(ImageSource::Local {
                path: text.into(),
                name: None,
            });
        }
        for (at, _) in text.match_indices(':') {
            let path = Path::new(&text[..at]);
            // A directory that only happens to be called like a repository is not meant.
            if at > 0 && at + 1 < text.len() && (path.is_file() || path.join("oci-layout").is_file()) {
                return Ok(ImageSource::Local {
                    path: path.into(),
                    name: Some(text[at + 1..].to_owned()),
                });
            }
        }
        let archive = [".tar", ".tar.gz", ".tgz", ".tar.zst"]
            .iter()
            .any(|end| text.ends_with(end));
        if text.starts_with(['/', '.', '~']) || archive {
            return Err(bad(text, "there is no such file or directory"));
        }
        Reference::parse(text).map(ImageSource::Registry)
    }
}

impl Reference {
    /// Parses and completes a reference: `alpine` is `docker.io/library/alpine:latest`.
    pub fn parse(text: &str) -> Result<Self> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                crate::Digest::parse(digest)
                    .map_err(|_| bad(text, "its digest is not sha256: and 64 hexadecimal digits"))?;
                (rest, Some(digest.to_owned()))
            }
            None => (text, None),
        };
        let (rest, tag) = match rest.rsplit_once(':') {
            Some((rest, tag)) if !tag.contains('/') => (rest, Some(tag.to_owned())),
            _ => (rest, None),
        };
        if tag.as_deref().is_some_and(|tag| !is_tag(tag)) {
            return Err(bad(text, "its tag is malformed"));
        }
        let (registry, path) = match rest.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path.to_owned()),
            Some(_) => ("docker.io", rest.to_owned()),
            None => ("docker.io", format!("library/{rest}")),
        };
        let host = |c: char| c.is_ascii_alphanumeric() || ".:-[]".contains(c);
        if !registry.chars().all(host) || registry.starts_with(['.', '-', ':']) {
            return Err(bad(text, "its host is malformed"));
        }
        if path.len() > 255 || !path.split('/').all(is_path_component) {
            return Err(bad(
                text,
                "a repository is made of lower-case letters, digits, and single . _ - between them",
            ));
        }
        let tag = tag.or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Reference {
            registry: registry.to_owned(),
            repository: path,
            tag,
            digest,
        })
    }
}

fn is_tag(tag: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.len() <= 128 && tag.starts_with(word) && tag.chars().all(|c| word(c) || c == '.' || c == '-')
}

fn is_path_component(part: &str) -> bool {
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    part.starts_with(letter)
        && part.ends_with(letter)
        && part.chars().all(|c| letter(c) || matches!(c, '.' | '_' | '-'))
        && !part.contains("..")
        && !part.contains("___")
}

fn bad(text: &str, why: &'static str) -> Error {
    Error::BadReference {
        text: text.chars().take(200).collect(),
        why,
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_completed() {
        for (text, full) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3.20", "docker.io/library/alpine:3.20"),
            ("me/tool", "docker.io/me/tool:latest"),
            ("ghcr.io/a/b/c:v1", "ghcr.io/a/b/c:v1"),
            ("localhost:5000/x", "localhost:5000/x:latest"),
            ("localhost/x", "localhost/x:latest"),
        ] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), full);
        }
        let digest = format!("alpine@sha256:{}", "a".repeat(64));
        assert_eq!(
            Reference::parse(&digest).unwrap().to_string(),
            format!("docker.io/library/{digest}")
        );
    }

    #[test]
    fn malformed_references_are_refused() {
        for text in [
            "",
            "Alpine",
            "a b",
            "a//b",
            "a/../b",
            "-x",
            "alpine:",
            "alpine:-x",
            "alpine@sha256:12",
            "a;b",
            "a\nb",
        ] {
            let error = ImageSource::parse(text).unwrap_err().to_string();
            assert!(
                error.contains("names no image") && !error.contains('\n'),
                "{error}"
            );
        }
    }

    #[test]
    fn missing_paths_are_not_taken_for_references() {
        for text in ["/no/such.tar", "./nothing", "image.tar", "x.tar.gz"] {
            let error = ImageSource::parse(text).unwrap_err().to_string();
            assert!(error.contains("no such file"), "{error}");
        }
    }

    #[test]
    fn paths_may_carry_an_image_name() {
        let dir = tempfile::tempdir().unwrap();
        let tar = dir.path().join("images.tar");
        std::fs::write(&tar, b"").unwrap();
        let text = format!("{}:alpine:3.20", tar.display());
        let wanted = ImageSource::Local {
            path: tar.clone(),
            name: Some("alpine:3.20".into()),
        };
        assert_eq!(ImageSource::parse(&text).unwrap(), wanted);
        assert_eq!(
            ImageSource::parse(tar.to_str().unwrap()).unwrap(),
            ImageSource::Local {
                path: tar,
                name: None
            }
        );
    }
}
