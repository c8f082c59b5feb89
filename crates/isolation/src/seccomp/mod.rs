//! The seccomp profile: data (`profiles/default.json`) compiled to one filter program.

mod numbers;
mod program;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use numbers::number_of;
use program::{Outcome, Refusal, Test};

pub use program::Filter;

/// The profile that commands get.
const DEFAULT: &str = include_str!("../../profiles/default.json");

/// Refusals that a profile may use.
const ERRORS: [(&str, i32); 6] = [
    ("EPERM", libc::EPERM),
    ("EACCES", libc::EACCES),
    ("ENOSYS", libc::ENOSYS),
    ("EAFNOSUPPORT", libc::EAFNOSUPPORT),
    ("EPROTONOSUPPORT", libc::EPROTONOSUPPORT),
    ("EINVAL", libc::EINVAL),
];

/// A profile as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// What the file is, for its readers.
    pub about: String,
    /// What happens to calls that no rule names.
    pub default: DefaultRule,
    /// Admissions and refusals; refusals win.
    pub rules: Vec<Rule>,
}

/// The outcome for calls that no rule names.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DefaultRule {
    /// Name of an error number.
    pub action: String,
    /// Why.
    pub reason: String,
}

/// One rule.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Why it is there.
    pub reason: String,
    /// `allow`, or the name of the error number that the call fails with.
    pub action: String,
    /// Names of system calls.
    pub syscalls: Vec<String>,
    /// Alternatives, each a list of conditions that must all hold. Without it the rule always applies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<Vec<Vec<Condition>>>,
}

/// A condition on one argument, seen as 32 bits.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Condition {
    /// The named bits of the argument have this value.
    Bits {
        /// Number of the argument, from 0.
        arg: u8,
        /// Which bits to look at.
        bits: u32,
        /// Their value.
        equal: u32,
    },
    /// The argument is not this value.
    Not {
        /// Number of the argument, from 0.
        arg: u8,
        /// The value.
        not: u32,
    },
}

impl Profile {
    /// The profile that this program ships.
    pub fn shipped() -> Result<Self> {
        Self::parse(DEFAULT)
    }

    /// Reads a profile; refuses unknown fields, rules without a reason or without calls, and conditional admissions.
    pub fn parse(text: &str) -> Result<Self> {
        let profile: Self = serde_json::from_str(text).map_err(|e| Error::Profile(e.to_string()))?;
        if profile.default.reason.trim().is_empty() {
            return Err(Error::Profile("the default has no reason".into()));
        }
        error_number(&profile.default.action)?;
        for rule in &profile.rules {
            rule.check()?;
        }
        Ok(profile)
    }

    /// The filter program. Refuses names that are not system calls of this processor.
    pub fn compile(&self) -> Result<Filter> {
        let mut calls: BTreeMap<u32, Outcome> = BTreeMap::new();
        for rule in &self.rules {
            for name in &rule.syscalls {
                let number = number_of(name)
                    .ok_or_else(|| Error::Profile(format!("there is no system call {name}")))?;
                let outcome = calls.entry(number).or_default();
                match (&rule.when, rule.action.as_str()) {
                    (_, "allow") => outcome.known = true,
                    (when, error) => {
                        let errno = error_number(error)?;
                        let alternatives = when.clone().unwrap_or_else(|| vec![Vec::new()]);
                        outcome.known = true;
                        outcome.refusals.extend(alternatives.iter().map(|all| Refusal {
                            tests: all.iter().map(Condition::to_test).collect(),
                            errno,
                        }));
                    }
                }
            }
        }
        program::build(&calls, error_number(&self.default.action)?)
    }
}

impl Rule {
    fn check(&self) -> Result<()> {
        let shown = self.syscalls.join(" ");
        if self.reason.trim().is_empty() {
            return Err(Error::Profile(format!("the rule for {shown} has no reason")));
        }
        if self.syscalls.is_empty() {
            return Err(Error::Profile(format!(
                "a rule names no system call (its reason: {})",
                self.reason
            )));
        }
        if self.action == "allow" {
            if self.when.is_some() {
                return Err(Error::Profile(format!(
                    "the rule for {shown} admits on a condition; write what is refused instead"
                )));
            }
            return Ok(());
        }
        error_number(&self.action).map(|_| ())
    }
}

impl Condition {
    fn to_test(&self) -> Test {
        match *self {
            Self::Bits { arg, bits, equal } => Test {
                arg,
                bits,
                value: equal,
                equal: true,
            },
            Self::Not { arg, not } => Test {
                arg,
                bits: u32::MAX,
                value: not,
                equal: false,
            },
        }
    }
}

fn error_number(name: &str) -> Result<i32> {
    ERRORS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number)
        .ok_or_else(|| {
            Error::Profile(format!(
                "unknown action {name}; use allow or one of the known error names"
            ))
        })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_shipped_profile_compiles_and_every_rule_says_why() {
        let profile = Profile::shipped().unwrap();
        assert!(profile.rules.iter().all(|rule| rule.reason.len() > 10));
        // The kernel's bound is 4096 (BPF_MAXINSNS).
        assert!((100..1000).contains(&profile.compile().unwrap().length()));
    }

    #[test]
    fn a_rule_without_a_reason_is_found() {
        let text = r#"{"about":"x","default":{"action":"ENOSYS","reason":"r"},
            "rules":[{"reason":" ","action":"EPERM","syscalls":["bpf"]}]}"#;
        assert!(
            Profile::parse(text)
                .unwrap_err()
                .to_string()
                .contains("bpf has no reason")
        );
    }

    #[test]
    fn a_system_call_that_does_not_exist_is_found() {
        let text = r#"{"about":"x","default":{"action":"ENOSYS","reason":"r"},
            "rules":[{"reason":"why not","action":"EPERM","syscalls":["frobnicate"]}]}"#;
        assert!(
            Profile::parse(text)
                .unwrap()
                .compile()
                .unwrap_err()
                .to_string()
                .contains("frobnicate")
        );
    }

    #[test]
    fn no_call_is_both_refused_always_and_admitted() {
        let profile = Profile::shipped().unwrap();
        let admitted: BTreeSet<&String> = profile
            .rules
            .iter()
            .filter(|r| r.action == "allow")
            .flat_map(|r| &r.syscalls)
            .collect();
        for rule in profile
            .rules
            .iter()
            .filter(|r| r.action != "allow" && r.when.is_none())
        {
            assert!(
                rule.syscalls.iter().all(|name| !admitted.contains(name)),
                "{:?}",
                rule.syscalls
            );
        }
        // A refusal on a condition is only meaningful for a call that is admitted otherwise.
        for rule in profile.rules.iter().filter(|r| r.when.is_some()) {
            assert!(
                rule.syscalls.iter().all(|name| admitted.contains(name)),
                "{:?}",
                rule.syscalls
            );
        }
    }
}
