//! `deltabox shell`

use deltabox_api::{EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, ExecRequest};

use super::create::parse_env;
use super::exec::{Session, terminal_env};
use super::failure::{Failure, Outcome};
use super::terminal::window_size;
use crate::client::Client;

/// Becomes the shell that the user's entry in /etc/passwd names, or the best there is.
const FIND_SHELL: &str = r#"
uid=$(id -u 2>/dev/null)
shell=
while IFS=: read -r _ _ entry_uid _ _ _ entry_shell; do
    if [ "$entry_uid" = "${uid:-0}" ]; then shell=$entry_shell; break; fi
done 2>/dev/null </etc/passwd
case $shell in */nologin | */false) shell= ;; esac
for candidate in "$shell" /bin/bash /bin/sh; do
    if [ -x "$candidate" ]; then SHELL=$candidate exec "$candidate"; fi
done
"#;

/// Open the user's shell in a sandbox on this terminal
#[derive(clap::Args)]
pub struct Args {
    /// Name of the sandbox
    name: String,
    /// User inside: name, uid, name:group or uid:gid
    #[arg(long, short)]
    user: Option<String>,
    /// Directory to start in
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<String>,
    /// Environment; without a value, the caller's own
    #[arg(long = "env", short, value_name = "K[=V]")]
    env: Vec<String>,
}

pub fn run(args: Args) -> Outcome {
    let request = ExecRequest {
        argv: ["/bin/sh", "-c", FIND_SHELL].map(str::to_owned).to_vec(),
        env: terminal_env(parse_env(&args.env)?),
        workdir: args.workdir,
        user: args.user,
        tty: Some(window_size()),
        stdin: true,
        ..ExecRequest::default()
    };
    let outcome = Session {
        client: &Client::from_env()?,
        sandbox: &args.name,
        request: &request,
    }
    .run();
    match outcome {
        Err(Failure::Error {
            mut error,
            exit_code: Some(code @ (EXIT_NOT_EXECUTABLE | EXIT_NOT_FOUND)),
        }) => {
            error.hint.get_or_insert_with(|| {
                format!(
                    "the root has no usable /bin/sh; run a program it has: deltabox exec -it {} -- CMD",
                    args.name
                )
            });
            Err(Failure::from(error).with_exit_code(code))
        }
        outcome => outcome,
    }
}
