//! The command line: one file per command, each with its arguments and a `run`.

mod checkpoint;
mod commit;
mod cp;
mod create;
mod demo;
mod diff;
mod doctor;
mod exec;
mod export;
mod failure;
mod fork;
mod fsck;
mod gc;
mod inspect;
mod log;
mod ls;
mod output;
mod pause;
mod pin;
mod restore;
mod resume;
mod retention;
mod rm;
mod rollback;
mod serve;
mod shell;
mod stats;
mod stop;
mod terminal;
mod tree;
mod units;

use clap::{Parser, Subcommand};
use deltabox_api::EXIT_EXEC_FAILED;
use hyper::Method;

use failure::Outcome;

/// Sandboxes whose complete state is checkpointed and rolled back in about a millisecond.
///
/// The daemon that owns the sandboxes is started when it is needed; its state directory is DELTABOX_HOME, by default
/// /var/lib/deltabox. Exit codes and all details: docs/cli.md.
#[derive(Parser)]
#[command(name = "deltabox", version, propagate_version = false)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Create(create::Args),
    Exec(exec::Args),
    Shell(shell::Args),
    Ls(ls::Args),
    Inspect(inspect::Args),
    Stats(stats::Args),
    Cp(cp::Args),
    Rm(rm::Args),
    Checkpoint(checkpoint::Args),
    Rollback(rollback::Args),
    /// Keep a checkpoint from being removed until it is unpinned
    Pin(pin::Args),
    /// Allow a pinned checkpoint to be removed again
    Unpin(pin::Args),
    Fork(fork::Args),
    Pause(pause::Args),
    Resume(resume::Args),
    Log(log::Args),
    Retention(retention::Args),
    Gc(gc::Args),
    Diff(diff::Args),
    Restore(restore::Args),
    Export(export::Args),
    Commit(commit::Args),
    Demo(demo::Args),
    Doctor(doctor::Args),
    Fsck(fsck::Args),
    Serve(serve::Args),
    Stop(stop::Args),
}

/// Runs the command line; returns the exit code of the process.
pub fn main() -> i32 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A closed pipe behind `--help` is no failure.
            let _ = error.print();
            return match error.exit_code() {
                0 => 0,
                // The command's own exit codes must stay distinct from ours.
                _ if std::env::args_os()
                    .nth(1)
                    .is_some_and(|name| name == "exec" || name == "shell") =>
                {
                    EXIT_EXEC_FAILED
                }
                code => code,
            };
        }
    };
    match run(cli.command) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

fn run(command: Command) -> Outcome {
    match command {
        Command::Create(args) => create::run(args),
        Command::Exec(args) => exec::run(args),
        Command::Shell(args) => shell::run(args),
        Command::Ls(args) => ls::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::Cp(args) => cp::run(&args),
        Command::Rm(args) => rm::run(&args),
        Command::Checkpoint(args) => checkpoint::run(args),
        Command::Rollback(args) => rollback::run(args),
        Command::Pin(args) => pin::run(&args, Method::PUT),
        Command::Unpin(args) => pin::run(&args, Method::DELETE),
        Command::Fork(args) => fork::run(args),
        Command::Pause(args) => pause::run(&args),
        Command::Resume(args) => resume::run(args),
        Command::Log(args) => log::run(&args),
        Command::Retention(args) => retention::run(&args),
        Command::Gc(args) => gc::run(args),
        Command::Diff(args) => diff::run(&args),
        Command::Restore(args) => restore::run(args),
        Command::Export(args) => export::run(&args),
        Command::Commit(args) => commit::run(args),
        Command::Demo(args) => demo::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Fsck(args) => fsck::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Stop(args) => stop::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_definition_of_the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
