//! From outcomes per system call to a classic BPF program (man 2 seccomp, man 8 bpfc).
//!
//! The numbers of system calls are split into ranges of the same outcome, which are found by binary search. That
//! matters when the program is installed: the kernel then runs it once for every system call there is, to remember
//! which are admitted whatever their arguments (Linux >= 5.11), and a linear program of the same profile took 1.2 ms
//! of every start of a command for that.

use std::collections::BTreeMap;

use deltabox_sys::prctl::{FilterInstruction, install_filter};

use crate::error::{Error, Result};

// Instruction codes, and actions, of linux/bpf_common.h and linux/seccomp.h.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const KILL_PROCESS: u32 = 0x8000_0000;

// Offsets in struct seccomp_data.
const NUMBER_AT: u32 = 0;
const ARCH_AT: u32 = 4;
const ARGS_AT: u32 = 16;

/// The kernel takes no longer programs (BPF_MAXINSNS).
const LENGTH_MAX: usize = 4096;

/// AUDIT_ARCH_* of this processor (linux/audit.h).
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

/// What happens to a call: admitted if known, unless a refusal applies; the first that does counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    pub known: bool,
    pub refusals: Vec<Refusal>,
}

/// Applies if all tests do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub tests: Vec<Test>,
    pub errno: i32,
}

/// Whether some of the lower 32 bits of an argument have a value, or do not. The kernel's own functions take the
/// tested arguments as 32-bit values, or refuse higher bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Test {
    pub arg: u8,
    pub bits: u32,
    pub value: u32,
    pub equal: bool,
}

/// A compiled profile.
#[derive(Debug, Clone)]
pub struct Filter {
    instructions: Vec<FilterInstruction>,
}

impl Filter {
    /// Number of instructions.
    pub fn length(&self) -> usize {
        self.instructions.len()
    }

    /// Confines the calling thread and its children for good. Needs `no_new_privs` or CAP_SYS_ADMIN.
    pub fn install(&self) -> std::io::Result<()> {
        install_filter(&self.instructions)
    }
}

/// The program that gives each call its outcome, and calls that are not named the error number `default`.
pub(super) fn build(calls: &BTreeMap<u32, Outcome>, default: i32) -> Result<Filter> {
    let mut program = vec![
        plain(LOAD, ARCH_AT),
        // Another entry into the kernel (32-bit programs) numbers its calls differently.
        FilterInstruction {
            code: JUMP_IF_EQUAL,
            jt: 1,
            jf: 0,
            k: ARCH,
        },
        plain(RETURN, KILL_PROCESS),
        plain(LOAD, NUMBER_AT),
    ];
    program.extend(search(&ranges(calls), default)?);
    if program.len() > LENGTH_MAX {
        return Err(Error::Profile(format!(
            "{} instructions are more than the kernel takes",
            program.len()
        )));
    }
    Ok(Filter {
        instructions: program,
    })
}

/// Start and outcome of each range of numbers, the first starting at 0.
fn ranges(calls: &BTreeMap<u32, Outcome>) -> Vec<(u32, Outcome)> {
    let mut ranges: Vec<(u32, Outcome)> = vec![(0, Outcome::default())];
    let mut push = |start: u32, outcome: &Outcome| match ranges.last_mut() {
        Some((_, last)) if last == outcome => {}
        Some((last_start, last)) if *last_start == start => *last = outcome.clone(),
        _ => ranges.push((start, outcome.clone())),
    };
    for (number, outcome) in calls {
        push(*number, outcome);
        if !calls.contains_key(&(number + 1)) {
            push(number + 1, &Outcome::default());
        }
    }
    ranges
}

fn search(ranges: &[(u32, Outcome)], default: i32) -> Result<Vec<FilterInstruction>> {
    let [(_, outcome)] = ranges else {
        let (left, right) = ranges.split_at(ranges.len() / 2);
        let (middle, left) = (right[0].0, search(left, default)?);
        // Conditional jumps reach 255 instructions only.
        let mut both = vec![
            FilterInstruction {
                code: JUMP_IF_AT_LEAST,
                jt: 0,
                jf: 1,
                k: middle,
            },
            plain(JUMP, left.len() as u32),
        ];
        both.extend(left);
        both.extend(search(right, default)?);
        return Ok(both);
    };
    leaf(outcome, default)
}

fn leaf(outcome: &Outcome, default: i32) -> Result<Vec<FilterInstruction>> {
    if !outcome.known {
        return Ok(vec![refuse(default)]);
    }
    let mut program = Vec::new();
    for refusal in &outcome.refusals {
        let mut tests: Vec<FilterInstruction> = Vec::new();
        let mut checks = Vec::new();
        for test in &refusal.tests {
            tests.push(plain(LOAD, ARGS_AT + 8 * u32::from(test.arg)));
            if test.bits != u32::MAX {
                tests.push(plain(AND, test.bits));
            }
            checks.push((tests.len(), test.equal));
            tests.push(plain(JUMP_IF_EQUAL, test.value));
        }
        // A test that fails leads past this refusal, which is one instruction after the last test.
        for (at, equal) in checks {
            let past = u8::try_from(tests.len() - at)
                .map_err(|_| Error::Profile("a rule has too many conditions at once".into()))?;
            let jump = &mut tests[at];
            (jump.jt, jump.jf) = if equal { (0, past) } else { (past, 0) };
        }
        program.extend(tests);
        program.push(refuse(refusal.errno));
        if refusal.tests.is_empty() {
            return Ok(program);
        }
    }
    program.push(plain(RETURN, ALLOW));
    Ok(program)
}

fn refuse(errno: i32) -> FilterInstruction {
    plain(RETURN, ERRNO | errno as u32)
}

fn plain(code: u16, k: u32) -> FilterInstruction {
    FilterInstruction {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would.
    fn run(filter: &Filter, arch: u32, number: u32, args: [u32; 6]) -> u32 {
        let (mut at, mut value) = (0, 0u32);
        loop {
            let FilterInstruction { code, jt, jf, k } = filter.instructions[at];
            at += 1;
            let skip = |taken: bool| usize::from(if taken { jt } else { jf });
            match code {
                LOAD if k == NUMBER_AT => value = number,
                LOAD if k == ARCH_AT => value = arch,
                LOAD => value = args[(k - ARGS_AT) as usize / 8],
                AND => value &= k,
                JUMP => at += k as usize,
                JUMP_IF_EQUAL => at += skip(value == k),
                JUMP_IF_AT_LEAST => at += skip(value >= k),
                RETURN => return k,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    fn refusal(errno: i32, tests: &[(u8, u32, u32, bool)]) -> Refusal {
        let tests = tests
            .iter()
            .map(|&(arg, bits, value, equal)| Test {
                arg,
                bits,
                value,
                equal,
            })
            .collect();
        Refusal { tests, errno }
    }

    #[test]
    fn every_number_gets_its_outcome() {
        let mut calls = BTreeMap::new();
        for number in (0..400).filter(|n| n % 3 != 0 && !(100..200).contains(n)) {
            let refusals = match number % 7 {
                0 => vec![refusal(1, &[])],
                1 => vec![
                    refusal(2, &[(0, 0xf0, 0x10, true)]),
                    refusal(3, &[(5, u32::MAX, 9, false), (1, 1, 1, true)]),
                ],
                _ => vec![],
            };
            calls.insert(
                number,
                Outcome {
                    known: true,
                    refusals,
                },
            );
        }
        let filter = build(&calls, 38).unwrap();
        for number in 0..1000 {
            for args in [
                [0, 0, 0, 0, 0, 9],
                [0x1f, 1, 0, 0, 0, 9],
                [0x2f, 3, 0, 0, 0, 8],
                [0x2f, 2, 0, 0, 0, 8],
            ] {
                let wanted = match calls.get(&number) {
                    None => ERRNO | 38,
                    Some(_) if number % 7 == 0 => ERRNO | 1,
                    Some(_) if number % 7 == 1 && args[0] & 0xf0 == 0x10 => ERRNO | 2,
                    Some(_) if number % 7 == 1 && args[5] != 9 && args[1] & 1 == 1 => ERRNO | 3,
                    Some(_) => ALLOW,
                };
                assert_eq!(run(&filter, ARCH, number, args), wanted, "{number} {args:?}");
            }
            assert_eq!(run(&filter, 0x4000_0003, number, [0; 6]), KILL_PROCESS);
        }
        assert_eq!(run(&filter, ARCH, u32::MAX, [0; 6]), ERRNO | 38);
    }
}
