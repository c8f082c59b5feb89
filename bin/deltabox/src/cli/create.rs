//! `deltabox create`

use std::collections::BTreeMap;
use std::path::Path;

use deltabox_api::{ApiError, CreateRequest, ErrorKind, Limits, Mount, Root, SandboxInfo};

use super::failure::{Outcome, usage};
use super::output::{emit, emit_json};
use super::units::parse_size;
use crate::client::Client;

/// Make a sandbox and print its name
#[derive(clap::Args)]
pub struct Args {
    /// Name of the sandbox ([a-z0-9][a-z0-9_.-]*); made up when absent
    #[arg(long)]
    name: Option<String>,
    /// Root: the machine's own filesystem, read-only and copy-on-write (the default)
    #[arg(long, conflicts_with_all = ["rootfs", "image"])]
    host: bool,
    /// Root: a directory, read-only and copy-on-write
    #[arg(long, value_name = "DIR", conflicts_with = "image")]
    rootfs: Option<String>,
    /// Root: a registry reference, an OCI layout or a `docker save` tar
    #[arg(long, value_name = "REF|PATH")]
    image: Option<String>,
    /// Limit of memory, for example 512M
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// Limit of CPU time, in CPUs, for example 1.5
    #[arg(long, value_name = "N", value_parser = parse_cpus)]
    cpus: Option<f64>,
    /// Limit of processes and threads
    #[arg(long, value_name = "N")]
    pids: Option<u32>,
    /// Make a directory of the host available inside; changes there are not rolled back
    #[arg(long = "mount", value_name = "SRC[:DST][:ro]")]
    mounts: Vec<String>,
    /// Make the current directory available inside at the same path, writable
    #[arg(long)]
    here: bool,
    #[command(flatten)]
    retention: super::retention::Limits,
    /// Environment of every command; without a value, the caller's own
    #[arg(long = "env", short, value_name = "K[=V]")]
    env: Vec<String>,
    /// Print the sandbox as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Outcome {
    let json = args.json;
    let request = request(args)?;
    let sandbox: SandboxInfo = Client::from_env()?.post("/sandboxes", &request)?;
    if json {
        emit_json(&sandbox)?;
    } else {
        emit(&format!("{}\n", sandbox.name))?;
    }
    Ok(0)
}

fn request(args: Args) -> Result<CreateRequest, ApiError> {
    let mut mounts = args
        .mounts
        .iter()
        .map(|text| parse_mount(text))
        .collect::<Result<Vec<_>, _>>()?;
    if args.here {
        let here = std::env::current_dir()
            .map_err(|error| usage(format!("cannot tell the current directory: {error}")))?;
        let here = existing_path(&here)?;
        mounts.push(Mount {
            source: here.clone(),
            target: here,
            read_only: false,
        });
    }
    let root = match (args.rootfs, args.image) {
        (Some(path), _) => Root::Directory {
            path: existing_path(Path::new(&path))?,
        },
        (None, Some(reference)) => Root::Image {
            reference: image_reference(reference)?,
        },
        (None, None) => Root::Host,
    };
    Ok(CreateRequest {
        name: args.name,
        root,
        limits: Limits {
            memory_bytes: args.memory,
            pids: args.pids,
            cpus: args.cpus,
        },
        mounts,
        env: parse_env(&args.env)?,
        retention: args.retention.retention(),
    })
}

/// JSON has no way to say NaN, and the daemon would take what it gets for no limit at all.
fn parse_cpus(text: &str) -> Result<f64, String> {
    let cpus: Option<f64> = text.parse().ok().filter(|cpus: &f64| cpus.is_finite());
    cpus.ok_or_else(|| "expected a number such as 1.5".to_owned())
}

/// `K=V`, or `K` for the caller's own value.
pub fn parse_env(pairs: &[String]) -> Result<BTreeMap<String, String>, ApiError> {
    let mut env = BTreeMap::new();
    for pair in pairs {
        let (name, value) = match pair.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None => {
                let value = std::env::var(pair).map_err(|_| {
                    usage(format!("the environment has no text variable '{pair}'"))
                        .hint("give a value: --env K=V")
                })?;
                (pair.as_str(), value)
            }
        };
        if name.is_empty() {
            return Err(usage(format!("'{pair}' has no variable name before '='")));
        }
        env.insert(name.to_owned(), value);
    }
    Ok(env)
}

/// `SRC[:DST][:ro]`; `rw` is accepted too.
fn parse_mount(text: &str) -> Result<Mount, ApiError> {
    let (rest, read_only) = match text.rsplit_once(':') {
        Some((rest, "ro")) => (rest, true),
        Some((rest, "rw")) => (rest, false),
        _ => (text, false),
    };
    let (source, target) = rest.split_once(':').unwrap_or((rest, ""));
    let source = existing_path(Path::new(source))?;
    let target = if target.is_empty() {
        source.clone()
    } else {
        target.to_owned()
    };
    if !target.starts_with('/') {
        return Err(usage(format!(
            "the target '{target}' of a mount is not an absolute path"
        ))
        .hint("write --mount SRC:/DST or --mount SRC:/DST:ro"));
    }
    Ok(Mount {
        source,
        target,
        read_only,
    })
}

/// The absolute path of something that exists: the daemon has another working directory.
fn existing_path(path: &Path) -> Result<String, ApiError> {
    let absolute = std::fs::canonicalize(path)
        .map_err(|error| ApiError::new(ErrorKind::NotFound, format!("'{}': {error}", path.display())))?;
    absolute
        .into_os_string()
        .into_string()
        .map_err(|path| usage(format!("the path '{}' is not text (UTF-8)", path.display())))
}

/// Paths are made absolute; what cannot be a path is a registry reference.
fn image_reference(reference: String) -> Result<String, ApiError> {
    let archive = [".tar", ".tar.gz", ".tgz", ".tar.zst"]
        .iter()
        .any(|end| reference.ends_with(end));
    if archive || reference.starts_with(['.', '/']) {
        return existing_path(Path::new(&reference));
    }
    Ok(reference)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_have_a_target_and_a_mode() {
        let mount = parse_mount("/usr").unwrap();
        assert_eq!((mount.target.as_str(), mount.read_only), ("/usr", false));
        let mount = parse_mount("/usr:/mnt/u:ro").unwrap();
        assert_eq!(
            (mount.source.as_str(), mount.target.as_str(), mount.read_only),
            ("/usr", "/mnt/u", true)
        );
        let mount = parse_mount("/usr:ro").unwrap();
        assert_eq!((mount.target.as_str(), mount.read_only), ("/usr", true));
        assert_eq!(parse_mount("/usr:relative").unwrap_err().kind, ErrorKind::Usage);
        assert_eq!(
            parse_mount("/does/not/exist").unwrap_err().kind,
            ErrorKind::NotFound
        );
    }

    #[test]
    fn environment_values_may_contain_equal_signs() {
        let env = parse_env(&["A=b=c".to_owned(), "E=".to_owned()]).unwrap();
        assert_eq!(env["A"], "b=c");
        assert_eq!(env["E"], "");
        assert!(parse_env(&["=x".to_owned()]).is_err());
        assert!(parse_env(&["DELTABOX_NO_SUCH_VARIABLE".to_owned()]).is_err());
    }

    #[test]
    fn only_paths_are_made_absolute() {
        assert_eq!(image_reference("alpine:3.20".to_owned()).unwrap(), "alpine:3.20");
        assert_eq!(image_reference("/usr/../usr".to_owned()).unwrap(), "/usr");
        assert!(image_reference("missing.tar".to_owned()).is_err());
    }
}
