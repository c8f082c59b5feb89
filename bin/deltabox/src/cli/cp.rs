//! `deltabox cp`
//!
//! Names follow the rules of `cp -r`: into a directory that exists, to a new name otherwise. Files arrive with the
//! receiver's ownership, and without set-user-id bits on the host: what is inside is not trusted outside.

mod unpack;

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use deltabox_api::{ApiError, ErrorKind};
use hyper::Method;

use super::export::copy;
use super::failure::{Failure, Outcome, usage};
use crate::client::{BodyWriter, Client, OutBody, body_channel, escape, request, sandbox_path};

/// A tar ends with two blocks of zeros.
const END_OF_ARCHIVE_BYTES: usize = 1024;

/// Copy files and directories into a sandbox or out of it
///
/// One side is NAME:PATH. `-` on the other side is a tar stream: from standard input, unpacked in the directory PATH,
/// or to standard output.
#[derive(clap::Args)]
pub struct Args {
    #[arg(value_name = "SRC")]
    source: String,
    #[arg(value_name = "DST")]
    target: String,
}

/// One side of a copy.
enum Side<'a> {
    Host(&'a str),
    Sandbox { name: &'a str, path: &'a str },
}

impl<'a> Side<'a> {
    /// `NAME:PATH`, unless a slash comes before the colon.
    fn parse(text: &'a str) -> Self {
        match text.split_once(':') {
            Some((name, path)) if !name.is_empty() && !name.contains('/') => Self::Sandbox { name, path },
            _ => Self::Host(text),
        }
    }
}

pub fn run(args: &Args) -> Outcome {
    let client = Client::from_env()?;
    match (Side::parse(&args.source), Side::parse(&args.target)) {
        (Side::Host("-"), Side::Sandbox { name, path }) => {
            upload(&client, name, absolute(path)?, |mut body| {
                io::copy(&mut io::stdin().lock(), &mut body)?;
                body.finish()
            })?;
        }
        (Side::Host(source), Side::Sandbox { name, path }) => {
            copy_in(&client, source, name, absolute(path)?)?
        }
        (Side::Sandbox { name, path }, Side::Host("-")) => {
            if io::stdout().is_terminal() {
                return Err(usage("the tar would go to a terminal")
                    .hint("redirect the output")
                    .into());
            }
            let mut body = client.download(&files(name, absolute(path)?))?;
            copy(&client, &mut body, &mut io::stdout().lock())?;
        }
        (Side::Sandbox { name, path }, Side::Host(target)) => {
            let (path, what) = match absolute(path)?.strip_suffix("/.") {
                Some(directory) => (directory, unpack::What::Contents),
                None => (path, unpack::What::Itself),
            };
            let body = client.download(&files(name, if path.is_empty() { "/" } else { path }))?;
            unpack::unpack(body, what, Path::new(target))?;
        }
        _ => {
            return Err(usage("exactly one side of a copy is in a sandbox")
                .hint("write deltabox cp SRC NAME:DST or deltabox cp NAME:SRC DST")
                .into());
        }
    }
    Ok(0)
}

fn absolute(path: &str) -> Result<&str, ApiError> {
    if path.starts_with('/') {
        return Ok(path);
    }
    Err(usage(format!("the path '{path}' inside the sandbox is not absolute")).hint("write NAME:/PATH"))
}

fn files(name: &str, path: &str) -> String {
    sandbox_path(name, &format!("/files?path={}", escape(path)))
}

fn copy_in(client: &Client, source: &str, name: &str, target: &str) -> Result<(), Failure> {
    std::fs::symlink_metadata(source)
        .map_err(|error| ApiError::new(ErrorKind::NotFound, format!("'{source}': {error}")))?;
    let into_directory = target.ends_with('/') || is_directory_inside(client, name, target)?;
    let (directory, entry) = if into_directory {
        (target, base_name(source)?)
    } else {
        let (parent, base) = target.rsplit_once('/').unwrap_or(("", target));
        (if parent.is_empty() { "/" } else { parent }, base.to_owned())
    };
    let source = PathBuf::from(source);
    upload(client, name, directory, |body| {
        let mut tar = tar::Builder::new(body);
        crate::pack::append(&mut tar, source, PathBuf::from(entry), &mut |path| {
            unpack::left_out(path)
        })?;
        tar.into_inner()?.finish()
    })
}

/// The last component of a path on the host, also of `.` and `..`.
fn base_name(source: &str) -> Result<String, ApiError> {
    let path = Path::new(source);
    let full = if path.file_name().is_some() {
        Ok(path.to_owned())
    } else {
        path.canonicalize()
    };
    let name = full
        .ok()
        .and_then(|path| path.file_name().and_then(|name| name.to_str()).map(str::to_owned));
    name.ok_or_else(|| {
        usage(format!("'{source}' has no name to copy it under"))
            .hint("give the name inside: NAME:/DIRECTORY/NAME")
    })
}

/// Whether the target exists as a directory, links followed. An archive of nothing can be unpacked in one, and says
/// so faster than reading it.
fn is_directory_inside(client: &Client, name: &str, path: &str) -> Result<bool, ApiError> {
    let nothing = OutBody::full(vec![0; END_OF_ARCHIVE_BYTES]);
    match client.perform(request(Method::PUT, &files(name, path), nothing)?) {
        Ok(()) => Ok(true),
        // If it is the sandbox that does not exist, the upload will tell.
        Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Usage) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Sends a tar that `send` produces on a thread of its own.
fn upload(
    client: &Client,
    name: &str,
    directory: &str,
    send: impl FnOnce(BodyWriter) -> io::Result<()> + Send,
) -> Result<(), Failure> {
    let (writer, body) = body_channel();
    let request = request(Method::PUT, &files(name, directory), body)?;
    let (answer, sent) = std::thread::scope(|scope| {
        let producer = scope.spawn(|| send(writer));
        let answer = client.perform(request);
        (answer, producer.join())
    });
    match sent.unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
        // The producer's failure broke the connection, so the answer says nothing of interest.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(ApiError::new(
            ErrorKind::Usage,
            format!("cannot read what is to be copied: {error}"),
        )
        .into()),
        // The daemon may stop reading early, and says why, or at the end of the archive.
        Ok(()) | Err(_) => Ok(answer?),
    }
}
