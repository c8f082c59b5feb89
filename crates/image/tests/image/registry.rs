//! Pulls from a registry of our own: a few lines of HTTP on the loopback interface.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use deltabox_image::{Digest, Error, ImageSource, ImportOptions, import};

use crate::common::*;

/// Content type and content by path.
type Files = HashMap<String, (String, Vec<u8>)>;

/// A registry that serves what it is given, once per connection, until it is dropped.
struct Registry {
    address: std::net::SocketAddr,
    files: Arc<Mutex<Files>>,
    asked: Arc<Mutex<Vec<String>>>,
    stop: Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Registry {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let files: Arc<Mutex<Files>> = Arc::default();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (files2, asked2, stop2) = (files.clone(), asked.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop2.load(std::sync::atomic::Ordering::SeqCst) {
                    return;
                }
                let _ = answer(stream.unwrap(), &files2, &asked2);
            }
        });
        Registry {
            address,
            files,
            asked,
            stop,
            thread: Some(thread),
        }
    }

    fn put(&self, path: String, kind: &str, bytes: Vec<u8>) {
        self.files.lock().unwrap().insert(path, (kind.into(), bytes));
    }

    /// Serves a layout's blobs and its manifest, under a tag and its digest.
    fn image(&self, repository: &str, tag: &str, files: &[(String, Vec<u8>)]) -> String {
        for (name, bytes) in files {
            if let Some(hex) = name.strip_prefix("blobs/sha256/") {
                self.put(
                    format!("/v2/{repository}/blobs/sha256:{hex}"),
                    "application/octet-stream",
                    bytes.clone(),
                );
            }
        }
        let manifest = files[2].1.clone();
        let digest = Digest::of(&manifest).to_string();
        for name in [tag, &digest] {
            let kind = "application/vnd.oci.image.manifest.v1+json";
            self.put(
                format!("/v2/{repository}/manifests/{name}"),
                kind,
                manifest.clone(),
            );
        }
        digest
    }

    fn source(&self, rest: &str) -> ImageSource {
        ImageSource::parse(&format!("{}/{rest}", self.address)).unwrap()
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        self.thread.take().map(|t| t.join());
    }
}

fn answer(mut stream: TcpStream, files: &Mutex<Files>, asked: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or("").to_owned();
    while reader.read_line(&mut line)? > 2 {}
    asked.lock().unwrap().push(path.clone());
    let files = files.lock().unwrap();
    let ok = ("application/json".to_owned(), b"{}".to_vec());
    let found = if path == "/v2/" {
        Some(&ok)
    } else {
        files.get(&path)
    };
    match found {
        Some((kind, bytes)) => {
            let digest = Digest::of(bytes);
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nDocker-Content-Digest: {digest}\r\nConnection: close\r\n\r\n",
                bytes.len()
            )?;
            stream.write_all(bytes)
        }
        None => {
            let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
            write!(
                stream,
                "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            )
        }
    }
}

fn layers() -> Vec<(Vec<u8>, Vec<u8>)> {
    let one = Tar::default().file("one", b"1").end();
    let two = Tar::default().file("two", b"2").file(".wh.one", b"").end();
    vec![(gzip(&one), one), (zstd(&two), two)]
}

#[test]
fn an_image_is_pulled_once() {
    let registry = Registry::new();
    let dir = tempfile::tempdir().unwrap();
    let digest = registry.image("team/app", "v1", &layout(&layers()));
    let options = ImportOptions {
        cache: Some(dir.path().join("cache")),
        ..ImportOptions::default()
    };
    let dest = dir.path().join("layers");
    let image = import(&registry.source("team/app:v1"), &dest, &options).unwrap();
    assert_eq!(image.layers.len(), 2);
    assert_eq!(image.digest.to_string(), digest);
    assert_eq!(std::fs::read(image.layers[0].join("two")).unwrap(), b"2");
    assert_eq!(
        registry.asked().iter().filter(|p| p.contains("/blobs/")).count(),
        3
    );
    // The tag may have moved, so the manifest is asked for again; its content is here.
    let again = import(&registry.source("team/app:v1"), &dest, &options).unwrap();
    assert_eq!((again.reused, again.layers), (2, image.layers));
    assert!(!registry.asked().iter().any(|p| p.contains("/blobs/")));
    // A digest cannot move.
    import(&registry.source(&format!("team/app@{digest}")), &dest, &options).unwrap();
    assert!(registry.asked().is_empty());
    assert_eq!(
        names(&dir.path().join("cache")),
        ["blobs", "index.json", "oci-layout"]
    );
}

#[test]
fn the_fitting_variant_is_chosen() {
    let registry = Registry::new();
    let dir = tempfile::tempdir().unwrap();
    let mine = layout(&layers());
    let host = deltabox_image::Platform::host().architecture;
    let mut listed = vec![];
    for (files, architecture) in [(layout_for(&layers(), "s390x"), "s390x".to_owned()), (mine, host)] {
        let digest = registry.image("multi", "unused", &files);
        listed.push(format!(
            r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":{},"platform":{{"os":"linux","architecture":"{architecture}"}}}}"#,
            files[2].1.len()
        ));
    }
    let kind = "application/vnd.oci.image.index.v1+json";
    let put = |tag: &str, listed: &[String]| {
        let index = format!(
            r#"{{"schemaVersion":2,"mediaType":"{kind}","manifests":[{}]}}"#,
            listed.join(",")
        );
        registry.put(format!("/v2/multi/manifests/{tag}"), kind, index.into_bytes());
    };
    put("all", &listed);
    put("foreign", &listed[..1]);
    let options = ImportOptions {
        cache: Some(dir.path().join("cache")),
        ..ImportOptions::default()
    };
    let dest = dir.path().join("layers");
    assert_eq!(
        import(&registry.source("multi:all"), &dest, &options)
            .unwrap()
            .layers
            .len(),
        2
    );
    let error = import(&registry.source("multi:foreign"), &dest, &options).unwrap_err();
    assert!(matches!(error, Error::NoPlatform { .. }), "{error}");
}

#[test]
fn a_registry_is_not_trusted() {
    let registry = Registry::new();
    let dir = tempfile::tempdir().unwrap();
    let good = layout(&layers());
    let options = ImportOptions {
        cache: Some(dir.path().join("cache")),
        ..ImportOptions::default()
    };
    let dest = dir.path().join("layers");
    let failed = |rest: &str| {
        let error = import(&registry.source(rest), &dest, &options).unwrap_err();
        let text = error.to_string();
        assert!(
            !dest.exists() && !text.contains('\n') && text.contains(';'),
            "{text}"
        );
        assert!(
            !names(&dir.path().join("cache"))
                .iter()
                .any(|n| n.starts_with('.')),
            "{text}"
        );
        error
    };
    assert!(matches!(failed("nothing:here"), Error::Registry { .. }));
    registry.image("bad", "v1", &good);
    let (name, bytes) = good.last().unwrap();
    let path = format!("/v2/bad/{}", name.replace("sha256/", "sha256:"));
    for evil in [
        vec![0; bytes.len()],
        vec![0; bytes.len() + 1_000_000],
        bytes[..10].to_vec(),
        vec![],
    ] {
        registry.put(path.clone(), "application/octet-stream", evil);
        let error = failed("bad:v1");
        assert!(
            matches!(error, Error::Registry { .. } | Error::DigestMismatch { .. }),
            "{error}"
        );
    }
    for manifest in [
        "",
        "{",
        "[]",
        "{\"manifests\":[]}",
        r#"{"config":{"digest":"sha256:../../x"},"layers":[]}"#,
    ] {
        let kind = "application/vnd.oci.image.manifest.v1+json";
        registry.put("/v2/bad/manifests/v2".into(), kind, manifest.as_bytes().to_vec());
        let error = failed("bad:v2");
        assert!(
            matches!(error, Error::BadDocument { .. } | Error::Registry { .. }),
            "{error}"
        );
    }
}

#[test]
fn a_registry_that_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let source = ImageSource::parse(&format!("{address}/x:y")).unwrap();
    let error = import(&source, &dir.path().join("layers"), &ImportOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Registry { .. }), "{error}");
    assert!(names(dir.path()).is_empty());
}
