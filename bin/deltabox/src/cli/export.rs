//! `deltabox export`

use std::fs::Permissions;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use deltabox_api::{ApiError, ErrorKind};

use super::failure::{Failure, Outcome, usage};
use super::output::output_failed;
use crate::client::{BodyReader, Client, escape, sandbox_path};

/// Write a checkpoint's files as an OCI image or a plain tar
#[derive(clap::Args)]
pub struct Args {
    /// Name of the sandbox
    name: String,
    checkpoint: String,
    /// File to write; standard output when absent or `-`
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// What to write
    #[arg(long, value_enum, default_value = "oci")]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// An OCI image layout, the changes as one layer
    Oci,
    /// A tar of the whole tree
    Rootfs,
}

pub fn run(args: &Args) -> Outcome {
    let to_stdout = args.output.as_ref().is_none_or(|path| path == Path::new("-"));
    if to_stdout && io::stdout().is_terminal() {
        return Err(usage("the tar would go to a terminal")
            .hint("give -o FILE, or redirect the output")
            .into());
    }
    let format = match args.format {
        Format::Oci => "oci",
        Format::Rootfs => "rootfs",
    };
    let query = format!("/export?checkpoint={}&format={format}", escape(&args.checkpoint));
    let client = Client::from_env()?;
    let mut body = client.download(&sandbox_path(&args.name, &query))?;
    match &args.output {
        Some(path) if !to_stdout => to_file(&client, &mut body, path)?,
        _ => copy(&client, &mut body, &mut io::stdout().lock())?,
    }
    Ok(0)
}

/// Copies a streamed answer, telling apart which side failed.
pub fn copy(client: &Client, body: &mut BodyReader<'_>, output: &mut dyn Write) -> Result<(), Failure> {
    let mut buffer = vec![0; 128 << 10];
    loop {
        let length = match io::Read::read(body, &mut buffer) {
            Ok(0) => return output.flush().map_err(|error| output_failed(&error)),
            Ok(length) => length,
            Err(error) => return Err(client.endpoint().unreachable(&error).into()),
        };
        output
            .write_all(&buffer[..length])
            .map_err(|error| output_failed(&error))?;
    }
}

/// The file appears complete or not at all.
fn to_file(client: &Client, body: &mut BodyReader<'_>, path: &Path) -> Result<(), Failure> {
    let cannot = |error: &io::Error| {
        Failure::from(ApiError::new(
            ErrorKind::Exhausted,
            format!("cannot write '{}': {error}", path.display()),
        ))
    };
    // A device, a FIFO or /dev/stdout is written to, not replaced.
    if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .open(path)
            .map_err(|error| cannot(&error))?;
        return copy(client, body, &mut file);
    }
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".deltabox-export-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(directory)
        .map_err(|error| cannot(&error))?;
    copy(client, body, file.as_file_mut())?;
    file.persist(path).map_err(|error| cannot(&error.error))?;
    Ok(())
}
