//! Many callers at once.

use std::time::{Duration, Instant};

use crate::support::{Home, Random, assert_clear};

const LOAD: Duration = Duration::from_secs(6);

/// Success, or an error that says what happened.
fn tolerable(home: &Home, arguments: &[&str], codes: &[i32]) {
    let output = home.output(arguments);
    let code = output.status.code().expect("not killed");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        code == 0 || codes.contains(&code),
        "{arguments:?}: {code}: {said}"
    );
    if code != 0 && code != 123 {
        assert_clear(&said);
    }
}

#[test]
fn many_callers_of_few_sandboxes_neither_hang_nor_break_them() {
    let home = Home::new();
    let boxes = ["shared", "left", "right"];
    for name in boxes {
        home.ok(&["create", "--name", name]);
        home.sh(name, "echo start > /x");
        home.ok(&["checkpoint", name, "--label", "start"]);
    }
    let deadline = Instant::now() + LOAD;
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let home = &home;
            let name = if thread < 5 {
                "shared"
            } else {
                boxes[1 + thread % 2]
            };
            scope.spawn(move || {
                let mut random = Random::new();
                while Instant::now() < deadline {
                    match random.below(6) {
                        0 => tolerable(
                            home,
                            &[
                                "exec",
                                name,
                                "--",
                                "/bin/sh",
                                "-c",
                                "echo $$ >> /x; cat /x >/dev/null",
                            ],
                            &[123, 125],
                        ),
                        1 => tolerable(home, &["exec", "-d", name, "--", "/bin/sleep", "0.1"], &[125]),
                        2 => tolerable(home, &["exec", name, "--", "/bin/sleep", "0.05"], &[123, 125]),
                        3 => tolerable(home, &["rollback", name, "start"], &[4, 5]),
                        4 => tolerable(home, &["rollback", name, "@"], &[4, 5]),
                        _ => tolerable(home, &["checkpoint", name], &[4, 5]),
                    }
                }
            });
        }
    });
    for name in boxes {
        home.ok(&["rollback", name, "start"]);
        assert_eq!(home.sh(name, "cat /x"), "start");
        home.ok(&["checkpoint", name, "--wait", "durable"]);
    }
}

#[test]
fn of_many_that_make_or_remove_one_name_one_does() {
    let home = Home::new();
    for arguments in [&["create", "--name", "box"][..], &["rm", "box"][..]].repeat(3) {
        let codes: Vec<i32> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..6).map(|_| scope.spawn(|| home.fails(arguments).0)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(
            codes.iter().filter(|code| **code == 0).count(),
            1,
            "{arguments:?}: {codes:?}"
        );
        assert!(codes.iter().all(|code| [0, 3, 4].contains(code)), "{codes:?}");
    }
    assert_eq!(home.ok(&["ls", "--json"]), "[]");
}
