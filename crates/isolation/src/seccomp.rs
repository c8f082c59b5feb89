//! The seccomp profile: data (`profiles/default.json`) compiled to filter programs.
//!
//! One program per outcome, because a program knows one outcome besides its default: one admits the named calls and
//! gives the default error to all others; one per refusing error number looks for that refusal. All are installed;
//! the kernel takes the strictest result, and keeps a bitmap of the calls that all programs admit without looking at
//! arguments, so those cost nothing (Linux >= 5.11).

use std::collections::{BTreeMap, BTreeSet};

use seccompiler::{BpfProgram, TargetArch};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// The profile that commands get.
const DEFAULT: &str = include_str!("../profiles/default.json");

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

    /// The filter programs, to be installed in this order.
    pub fn compile(&self) -> Result<Vec<BpfProgram>> {
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|_| {
            Error::Profile(format!("no filters for the {} processor", std::env::consts::ARCH))
        })?;
        let names: BTreeSet<&String> = self.rules.iter().flat_map(|rule| &rule.syscalls).collect();
        let admitted: Vec<Value> = names.iter().map(|name| json!({ "syscall": name })).collect();
        let mut programs: BTreeMap<String, Value> = BTreeMap::new();
        programs.insert(
            "0-known".into(),
            json!({
                "mismatch_action": { "errno": error_number(&self.default.action)? },
                "match_action": "allow",
                "filter": admitted,
            }),
        );
        for (error, errno) in ERRORS {
            let refused: Vec<Value> = self
                .rules
                .iter()
                .filter(|rule| rule.action == error)
                .flat_map(Rule::to_filter)
                .collect();
            if !refused.is_empty() {
                programs.insert(
                    format!("1-{error}"),
                    json!({ "mismatch_action": "allow", "match_action": { "errno": errno }, "filter": refused }),
                );
            }
        }
        let text = serde_json::to_vec(&programs).map_err(|e| Error::Profile(e.to_string()))?;
        let compiled = seccompiler::compile_from_json(text.as_slice(), arch)
            .map_err(|e| Error::Profile(e.to_string()))?;
        let sorted: BTreeMap<String, BpfProgram> = compiled.into_iter().collect();
        Ok(sorted.into_values().collect())
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

    fn to_filter(&self) -> Vec<Value> {
        let alternatives: Vec<Value> = match &self.when {
            None => vec![Value::Null],
            Some(when) => when
                .iter()
                .map(|all| all.iter().map(Condition::to_json).collect())
                .collect(),
        };
        self.syscalls
            .iter()
            .flat_map(|name| {
                alternatives.iter().map(move |args| match args {
                    Value::Null => json!({ "syscall": name }),
                    args => json!({ "syscall": name, "args": args }),
                })
            })
            .collect()
    }
}

impl Condition {
    fn to_json(&self) -> Value {
        match self {
            Self::Bits { arg, bits, equal } => {
                json!({ "index": arg, "type": "dword", "op": { "masked_eq": bits }, "val": equal })
            }
            Self::Not { arg, not } => json!({ "index": arg, "type": "dword", "op": "ne", "val": not }),
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
    use super::*;

    #[test]
    fn the_shipped_profile_compiles_and_every_rule_says_why() {
        let profile = Profile::shipped().unwrap();
        assert!(profile.rules.iter().all(|rule| rule.reason.len() > 10));
        let programs = profile.compile().unwrap();
        assert!(programs.len() >= 4);
        assert!(programs.iter().all(|program| program.len() <= 4096));
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
