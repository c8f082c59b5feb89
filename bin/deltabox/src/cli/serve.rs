//! `deltabox serve`

use clap::ValueEnum;
use deltabox_api::{ApiError, ErrorKind};
use deltabox_state::StoreChoice;

use super::failure::Outcome;
use super::units::parse_size;
use crate::client::Home;
use crate::daemon::{ServeOptions, serve};

/// Run the daemon in the foreground
#[derive(clap::Args)]
pub struct Args {
    /// Filesystem that holds the layers
    #[arg(long, value_enum, default_value = "auto", env = "DELTABOX_STORE")]
    store: Store,
    /// Empty sandboxes kept ready
    #[arg(long, value_name = "N")]
    pool: Option<usize>,
    /// Size of the store's image when it is made; it is sparse
    #[arg(long, hide = true, value_name = "SIZE", value_parser = parse_size)]
    store_size: Option<u64>,
    /// Detach from the caller's session; how commands start the daemon
    #[arg(long, hide = true)]
    background: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Store {
    /// The best this machine offers
    Auto,
    /// A btrfs: reflinks and snapshots
    Btrfs,
    /// An XFS: reflinks
    Xfs,
    /// The state directory's own filesystem as it is
    Directory,
}

pub fn run(args: &Args) -> Outcome {
    if args.background {
        // Not a group leader: it was just started by a command of another group.
        rustix::process::setsid().map_err(|error| {
            ApiError::new(ErrorKind::Internal, format!("cannot leave the session: {error}"))
        })?;
    }
    // Modes are set where they matter and must not depend on who happens to start the daemon.
    rustix::process::umask(rustix::fs::Mode::WGRP | rustix::fs::Mode::WOTH);
    serve(ServeOptions {
        home: Home::from_env()?.path().to_owned(),
        store: match args.store {
            Store::Auto => StoreChoice::Auto,
            Store::Btrfs => StoreChoice::Btrfs,
            Store::Xfs => StoreChoice::Xfs,
            Store::Directory => StoreChoice::Directory,
        },
        store_bytes: args.store_size,
        pool_size: args.pool,
    })?;
    Ok(0)
}
