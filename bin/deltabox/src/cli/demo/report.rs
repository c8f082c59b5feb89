//! What the demo shows at its end: the tree, the diff, what it cost.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use deltabox_api::{ApiError, Diff, ErrorKind, Log};

use super::SANDBOX;
use super::material::Material;
use super::search::{Found, PLACE, Verdict, describe as counts, word};
use crate::cli::output::{render, table};
use crate::client::{Client, escape, sandbox_path};

/// Copies made for the baseline.
const COPIES: usize = 3;

pub fn describe(client: &Client, material: &Material, found: &Found, log: &Log) -> Result<String, ApiError> {
    let mut text = String::from("\nThe search tree\n\n");
    text += &tree(found);
    text += "\nThe checkpoints\n\n";
    text += &crate::cli::tree::draw(log);
    text += "\nWhat the repair changes\n\n";
    text += &diff(client)?;
    text += &format!(
        "\nThe test runner is one process that lived through it all: it ran the tests {} times and remembers the {} runs\n\
         that lie on the path to the repair; the others were rolled back, out of its memory too.\n",
        found.tries.len() + 1,
        found.remembered.len(),
    );
    text += "\nWhat it cost, as the caller saw it\n\n";
    text += &costs(material, found)?;
    Ok(text)
}

fn tree(found: &Found) -> String {
    let mut text = format!("  start: {}\n", counts(Some(found.start)));
    branch(found, None, 1, &mut text);
    text
}

fn branch(found: &Found, parent: Option<&str>, depth: usize, text: &mut String) {
    for node in found.tries.iter().filter(|node| node.parent.as_deref() == parent) {
        let mark = match node.verdict {
            Verdict::Passes => "✓",
            Verdict::Better => "+",
            _ => "✗",
        };
        *text += &format!(
            "  {}{mark} {}: {} ({})\n",
            "   ".repeat(depth),
            node.title,
            word(node.verdict),
            counts(node.counts)
        );
        branch(found, Some(&node.id), depth + 1, text);
    }
}

fn diff(client: &Client) -> Result<String, ApiError> {
    let path = sandbox_path(
        SANDBOX,
        &format!("/diff?from=start&text=true&path={}", escape(PLACE)),
    );
    let diff: Diff = client.get(&path)?;
    Ok(crate::cli::diff::describe(&diff.changes, false))
}

/// Percentiles by the nearest rank.
fn percentile(values: &mut [f64], percent: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (percent / 100.0 * values.len() as f64).ceil().max(1.0) as usize;
    values.get(rank - 1).copied().unwrap_or(f64::NAN)
}

fn costs(material: &Material, found: &Found) -> Result<String, ApiError> {
    let mut rows: Vec<(String, Vec<f64>)> = vec![
        (
            "checkpoint: files and processes".into(),
            found.checkpoints.iter().map(|(ms, _)| *ms).collect(),
        ),
        (
            "  of which the sandbox stood still".into(),
            found.checkpoints.iter().map(|(_, r)| r.stopped_ms).collect(),
        ),
        (
            "rollback: files and processes".into(),
            found.rollbacks.iter().map(|(ms, _)| *ms).collect(),
        ),
    ];
    rows.extend(baselines(material)?);
    let mut table = table(&["", "n", "p50 ms", "p95 ms", "max ms"]);
    for (what, mut values) in rows {
        let cells = [50.0, 95.0, 100.0].map(|percent| format!("{:.1}", percentile(&mut values, percent)));
        let [p50, p95, max] = cells;
        table.add_row([what, values.len().to_string(), p50, p95, max]);
    }
    Ok(render(&table))
}

/// What saving a state costs without DeltaBox: a copy of the directory, and no process comes with it.
fn baselines(material: &Material) -> Result<Vec<(String, Vec<f64>)>, ApiError> {
    let failed = |error: std::io::Error| {
        ApiError::new(
            ErrorKind::Internal,
            format!("cannot measure the baseline: {error}"),
        )
    };
    let scratch = tempfile::tempdir().map_err(failed)?;
    let program = scratch.path().join("program");
    std::fs::create_dir(&program).map_err(failed)?;
    tar::Archive::new(material.program_tar()?.as_slice())
        .unpack(&program)
        .map_err(failed)?;
    let mut rows = vec![(
        "baseline: copy of the program's directory, files only".into(),
        copies(&program, scratch.path())?,
    )];
    let library = Path::new("/usr/lib/python3");
    if library.is_dir() {
        rows.push((
            format!("baseline: copy of {}, files only", library.display()),
            copies(library, scratch.path())?,
        ));
    }
    Ok(rows)
}

fn copies(directory: &Path, scratch: &Path) -> Result<Vec<f64>, ApiError> {
    let failed = |error: std::io::Error| {
        ApiError::new(
            ErrorKind::Internal,
            format!("cannot measure the baseline: {error}"),
        )
    };
    let mut times = Vec::new();
    for i in 0..COPIES {
        let copy = scratch.join(format!("copy-{i}"));
        let clock = Instant::now();
        let status = Command::new("cp")
            .arg("-a")
            .arg(directory)
            .arg(&copy)
            .status()
            .map_err(failed)?;
        times.push(clock.elapsed().as_secs_f64() * 1e3);
        if !status.success() {
            return Err(ApiError::new(
                ErrorKind::Internal,
                "cannot measure the baseline: cp failed",
            ));
        }
        std::fs::remove_dir_all(&copy).map_err(failed)?;
    }
    Ok(times)
}
