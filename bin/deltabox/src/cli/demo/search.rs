//! The search: try a candidate from its parent's checkpoint, keep it or roll back.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use deltabox_api::{
    ApiError, CheckpointRequest, CheckpointResult, ErrorKind, ExecEvent, ExecRequest, RollbackRequest,
    RollbackResult,
};
use http_body_util::BodyExt;
use hyper::Method;
use serde::Serialize;
use serde_json::Value;

use super::SANDBOX;
use super::material::{Candidate, Counts, Material};
use crate::cli::failure::Failure;
use crate::client::{Client, OutBody, escape, json_request, request, sandbox_path};

/// Where the program is in the sandbox.
pub const PLACE: &str = "/srv/planner";
/// Longest wait for the runner's start and for its short answers.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// How a candidate did, compared with its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Passes,
    Better,
    Same,
    Worse,
    Timeout,
}

/// One try.
#[derive(Serialize)]
pub struct Try {
    pub id: String,
    pub parent: Option<String>,
    pub title: String,
    pub verdict: Verdict,
    pub counts: Option<Counts>,
}

/// What the search found, and what its steps cost.
pub struct Found {
    pub start: Counts,
    pub tries: Vec<Try>,
    /// The candidate with which all tests pass.
    pub repaired: Option<String>,
    /// What the living runner remembers, which is only what lies on the path that was kept.
    pub remembered: Vec<Value>,
    /// As the caller saw them, in milliseconds, with what the daemon says of them.
    pub checkpoints: Vec<(f64, CheckpointResult)>,
    pub rollbacks: Vec<(f64, RollbackResult)>,
}

impl Found {
    pub fn summary(&self, create_ms: f64) -> Value {
        serde_json::json!({
            "repaired": self.repaired,
            "tries": self.tries,
            "remembered": self.remembered,
            "create_ms": create_ms,
            "checkpoint_ms": self.checkpoints.iter().map(|(ms, _)| ms).collect::<Vec<_>>(),
            "rollback_ms": self.rollbacks.iter().map(|(ms, _)| ms).collect::<Vec<_>>(),
        })
    }
}

/// The living test runner, at the other end of `deltabox exec -i`.
struct Runner {
    process: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

fn failed(what: &str, error: impl std::fmt::Display) -> ApiError {
    ApiError::new(ErrorKind::Internal, format!("{what}: {error}"))
}

impl Runner {
    fn start(client: &Client, command: &[String]) -> Result<Self, ApiError> {
        let mut process = Command::new("/proc/self/exe")
            .args(["exec", "-i", "--workdir", PLACE, SANDBOX, "--"])
            .args(command)
            .env("DELTABOX_HOME", client.home().path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| failed("cannot run the test runner", error))?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(failed("cannot run the test runner", "it has no pipes"));
        };
        let (send, lines) = channel();
        std::thread::spawn(move || {
            BufReader::new(output)
                .lines()
                .map_while(Result::ok)
                .try_for_each(|l| send.send(l))
        });
        let runner = Self {
            process,
            input,
            lines,
        };
        let ready = runner.answer(ANSWER_MAX)?;
        ready.map(|_| runner).ok_or_else(|| {
            ApiError::new(
                ErrorKind::Unsupported,
                "the demo's test runner did not start in the sandbox",
            )
            .hint("it needs python3 below /usr of this machine")
        })
    }

    fn ask(&mut self, what: &str, at_most: Duration) -> Result<Option<Value>, ApiError> {
        writeln!(self.input, "{what}").map_err(|error| failed("the test runner does not listen", error))?;
        self.answer(at_most)
    }

    /// The next line, or `None` when it does not come in time.
    fn answer(&self, at_most: Duration) -> Result<Option<Value>, ApiError> {
        match self.lines.recv_timeout(at_most) {
            Ok(line) => serde_json::from_str(&line)
                .map(Some)
                .map_err(|error| failed("the test runner said nonsense", error)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(failed("the test runner ended", "see above")),
        }
    }

    fn run_tests(&mut self, at_most: Duration) -> Result<Option<Counts>, ApiError> {
        let answer = self.ask("run", at_most)?;
        let counts = answer.map(serde_json::from_value).transpose();
        counts.map_err(|error| failed("the test runner said nonsense", error))
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Search<'a> {
    client: &'a Client,
    found: Found,
}

impl Search<'_> {
    fn checkpoint(&mut self, label: &str) -> Result<String, ApiError> {
        let body = CheckpointRequest {
            label: Some(label.into()),
            ..CheckpointRequest::default()
        };
        let clock = Instant::now();
        let made: CheckpointResult = self.client.post(&sandbox_path(SANDBOX, "/checkpoints"), &body)?;
        let id = made.id.clone();
        self.found
            .checkpoints
            .push((clock.elapsed().as_secs_f64() * 1e3, made));
        Ok(id)
    }

    fn rollback(&mut self, to: &str) -> Result<f64, ApiError> {
        let clock = Instant::now();
        let body = RollbackRequest { to: to.into() };
        let done: RollbackResult = self.client.post(&sandbox_path(SANDBOX, "/rollback"), &body)?;
        let ms = clock.elapsed().as_secs_f64() * 1e3;
        self.found.rollbacks.push((ms, done));
        Ok(ms)
    }

    fn put(&self, directory: &str, tar: Vec<u8>) -> Result<(), ApiError> {
        let path = sandbox_path(SANDBOX, &format!("/files?path={}", escape(directory)));
        self.client
            .perform(request(Method::PUT, &path, OutBody::full(tar))?)
    }

    fn command(&self, argv: &[&str]) -> Result<(), ApiError> {
        let body = ExecRequest {
            argv: argv.iter().map(ToString::to_string).collect(),
            ..ExecRequest::default()
        };
        let request = json_request(Method::POST, &sandbox_path(SANDBOX, "/exec"), &body)?;
        let endpoint = self.client.endpoint();
        let bytes = self.client.block_on(async {
            let response = endpoint.expect(request).await?;
            let body = response.into_body().collect().await;
            body.map(|body| body.to_bytes())
                .map_err(|error| endpoint.unreachable(&error))
        })?;
        let last = bytes
            .split(|&byte| byte == b'\n')
            .rfind(|line| !line.is_empty())
            .unwrap_or_default();
        match serde_json::from_slice::<ExecEvent>(last)
            .ok()
            .and_then(|event| event.exit_code())
        {
            Some(0) => Ok(()),
            code => Err(failed(&argv.join(" "), format!("ended with {code:?}"))),
        }
    }

    fn apply(&self, material: &Material, candidate: &Candidate) -> Result<(), ApiError> {
        self.put(PLACE, material.candidate_tar(candidate)?)?;
        for path in &candidate.delete {
            self.command(&["rm", &format!("{PLACE}/{path}")])?;
        }
        Ok(())
    }
}

/// Tries all candidates, telling of each, until all tests pass.
pub fn run(
    client: &Client,
    material: &Material,
    say: &mut dyn FnMut(String) -> Result<(), Failure>,
) -> Result<Found, Failure> {
    let start = Counts {
        tests: 0,
        failures: 0,
        errors: 0,
    };
    let found = Found {
        start,
        tries: Vec::new(),
        repaired: None,
        remembered: Vec::new(),
        checkpoints: Vec::new(),
        rollbacks: Vec::new(),
    };
    let mut search = Search { client, found };
    search.command(&["mkdir", "-p", PLACE])?;
    search.put(PLACE, material.program_tar()?)?;
    let mut runner = Runner::start(client, &material.runner)?;
    let timeout = Duration::from_secs(material.test.timeout_s);
    let counts = runner
        .run_tests(ANSWER_MAX)?
        .ok_or_else(|| failed("the tests of the demo's program", "they did not end"))?;
    search.found.start = counts;
    say(format!(
        "program   a meeting planner in {PLACE}; its living test runner says: {}\n\n",
        describe(Some(counts))
    ))?;
    let mut states = HashMap::from([(None, (search.checkpoint("start")?, counts))]);
    for candidate in &material.candidates {
        // A candidate whose parent was given up is given up with it.
        let Some((from, before)) = states.get(&candidate.parent).cloned() else {
            continue;
        };
        let back_ms = search.rollback(&from)?;
        search.apply(material, candidate)?;
        let counts = runner.run_tests(timeout)?;
        let verdict = judge(counts, before, material.test.tests);
        say(format!(
            "try       {:<48} {:<9} {}; rolled back to {} in {back_ms:.1} ms before\n",
            candidate.title,
            word(verdict),
            describe(counts),
            candidate.parent.as_deref().unwrap_or("start"),
        ))?;
        search.found.tries.push(Try {
            id: candidate.id.clone(),
            parent: candidate.parent.clone(),
            title: candidate.title.clone(),
            verdict,
            counts,
        });
        if let (Verdict::Better | Verdict::Passes, Some(counts)) = (verdict, counts) {
            states.insert(
                Some(candidate.id.clone()),
                (search.checkpoint(&candidate.id)?, counts),
            );
        }
        if verdict == Verdict::Passes {
            search.found.repaired = Some(candidate.id.clone());
            break;
        }
    }
    let history = runner.ask("history", ANSWER_MAX)?;
    search.found.remembered = history
        .and_then(|h| h["history"].as_array().cloned())
        .unwrap_or_default();
    Ok(search.found)
}

fn judge(now: Option<Counts>, before: Counts, wanted: u32) -> Verdict {
    let Some(now) = now else { return Verdict::Timeout };
    let (bad, was) = (now.failures + now.errors, before.failures + before.errors);
    match bad {
        _ if now.tests < wanted || now.errors > 0 => Verdict::Worse,
        0 => Verdict::Passes,
        _ if bad < was => Verdict::Better,
        _ if bad == was => Verdict::Same,
        _ => Verdict::Worse,
    }
}

pub fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Passes => "passes",
        Verdict::Better => "better",
        Verdict::Same => "no better",
        Verdict::Worse => "worse",
        Verdict::Timeout => "hangs",
    }
}

pub fn describe(counts: Option<Counts>) -> String {
    match counts {
        None => "no answer".into(),
        Some(Counts {
            tests,
            failures: 0,
            errors: 0,
        }) => format!("{tests} tests pass"),
        Some(Counts {
            tests,
            failures,
            errors,
        }) => format!("{tests} tests, {} fail", failures + errors),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_tests_are_worse_even_if_all_pass() {
        let counts = |tests, failures, errors| {
            Some(Counts {
                tests,
                failures,
                errors,
            })
        };
        let before = Counts {
            tests: 26,
            failures: 2,
            errors: 0,
        };
        assert_eq!(judge(counts(17, 0, 0), before, 26), Verdict::Worse);
        assert_eq!(judge(counts(26, 1, 0), before, 26), Verdict::Better);
        assert_eq!(judge(counts(26, 2, 0), before, 26), Verdict::Same);
        assert_eq!(judge(counts(26, 0, 1), before, 26), Verdict::Worse);
        assert_eq!(judge(counts(26, 0, 0), before, 26), Verdict::Passes);
        assert_eq!(judge(None, before, 26), Verdict::Timeout);
    }
}
