//! What the doctor finds.

use serde::{Deserialize, Serialize};

/// State of one feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It was used and did what it should.
    Works,
    /// It works in part, or by a weaker means.
    Degraded,
    /// It could not be used.
    Missing,
}

/// What a probe prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub status: Status,
    pub detail: String,
}

impl Outcome {
    pub fn works(detail: impl Into<String>) -> Self {
        Outcome {
            status: Status::Works,
            detail: detail.into(),
        }
    }

    pub fn degraded(detail: impl Into<String>) -> Self {
        Outcome {
            status: Status::Degraded,
            detail: detail.into(),
        }
    }

    pub fn missing(detail: impl Into<String>) -> Self {
        Outcome {
            status: Status::Missing,
            detail: detail.into(),
        }
    }
}

/// Result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckResult {
    /// Short name, stable.
    pub name: String,
    /// What is checked, for people.
    pub title: String,
    /// Whether the main job cannot be done without it.
    pub required: bool,
    /// What was found.
    pub status: Status,
    /// How it was found, or why not.
    pub detail: String,
    /// What is lost without it. Empty when it works.
    pub lost: String,
    /// How to get it. Empty when it works.
    pub remedy: String,
}

/// The doctor's conclusion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Everything works, if perhaps by a weaker means where that is optional.
    Ready,
    /// The main job can be done; something optional is missing, or something required is weaker.
    Limited,
    /// Something required is missing.
    CannotRun,
}

/// Everything the doctor found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The running kernel's release.
    pub kernel: String,
    /// In the order of the table.
    pub checks: Vec<CheckResult>,
    /// The conclusion.
    pub verdict: Verdict,
}

impl Report {
    pub(crate) fn new(kernel: String, checks: Vec<CheckResult>) -> Self {
        let any = |required: bool, status: Status| {
            checks
                .iter()
                .any(|c| c.required == required && c.status == status)
        };
        let verdict = if any(true, Status::Missing) {
            Verdict::CannotRun
        } else if any(true, Status::Degraded) || any(false, Status::Missing) {
            Verdict::Limited
        } else {
            Verdict::Ready
        };
        Report {
            kernel,
            checks,
            verdict,
        }
    }

    /// Whether sandboxes can be created, checkpointed and rolled back here.
    pub fn can_run(&self) -> bool {
        self.verdict != Verdict::CannotRun
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(required: bool, status: Status) -> CheckResult {
        let text = String::new();
        CheckResult {
            name: text.clone(),
            title: text.clone(),
            required,
            status,
            detail: text.clone(),
            lost: text.clone(),
            remedy: text,
        }
    }

    #[test]
    fn only_what_is_required_and_missing_stops_the_main_job() {
        use Status::{Degraded, Missing, Works};
        for (checks, verdict) in [
            (vec![check(true, Works), check(false, Works)], Verdict::Ready),
            (vec![check(true, Works), check(false, Degraded)], Verdict::Ready),
            (vec![check(true, Works), check(false, Missing)], Verdict::Limited),
            (vec![check(true, Degraded), check(false, Works)], Verdict::Limited),
            (
                vec![check(true, Missing), check(false, Works)],
                Verdict::CannotRun,
            ),
        ] {
            let report = Report::new("k".into(), checks);
            assert_eq!(report.verdict, verdict);
            assert_eq!(report.can_run(), verdict != Verdict::CannotRun);
        }
    }
}
