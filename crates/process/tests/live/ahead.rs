//! Memory copied before the stop.

use crate::sandbox::{Sandbox, compiled};

#[test]
fn memory_copied_ahead_is_of_the_instant_of_the_stop() {
    let mut sandbox = Sandbox::new();
    let mut program = sandbox.start(&[compiled("ahead.c").to_str().unwrap()]);
    assert_eq!(program.ask(""), "0 broken");
    let mut images = Vec::new();
    for _ in 0..6 {
        images.push(sandbox.checkpoint_ahead().0);
        std::thread::sleep(std::time::Duration::from_millis(7));
    }
    for image in images.iter().rev().chain(&images) {
        sandbox.rollback(image);
        assert_eq!(program.ask(""), "0 broken");
        // Further checkpoints of what has been rolled back are as good.
        let (again, _) = sandbox.checkpoint_ahead();
        sandbox.rollback(&again);
        assert_eq!(program.ask(""), "0 broken");
    }
}

#[test]
fn what_is_not_written_again_is_not_read_during_the_stop() {
    let mut sandbox = Sandbox::new();
    let mut python = sandbox.python();
    python.ask("import os; memory = bytearray(os.urandom(1 << 20) * 64)");
    let (first, report) = sandbox.checkpoint_ahead();
    assert!(report.bytes_read < 4 << 20, "{}", report.bytes_read);
    assert!(report.bytes_stored >= 64 << 20, "{}", report.bytes_stored);
    assert!(
        first
            .processes
            .iter()
            .map(|process| process.pages.len())
            .sum::<usize>()
            > 16384
    );
    python.ask("for at in range(0, 32 << 20, 4096): memory[at] ^= 1");
    let (second, report) = sandbox.checkpoint_ahead();
    assert!(report.bytes_read < 1 << 20, "{}", report.bytes_read);
    python.ask("memory[5] = 7; a = hash(bytes(memory))");
    sandbox.rollback(&second);
    python.ask("b = hash(bytes(memory))");
    sandbox.rollback(&first);
    python.ask("for at in range(0, 32 << 20, 4096): memory[at] ^= 1");
    assert_eq!(
        python.ask("_ = hash(bytes(memory)) == hash(bytes(memory)), len(memory)"),
        "(True, 67108864)"
    );
    assert_eq!(
        python.ask("_ = all(memory[at] == memory[at + (32 << 20)] ^ 1 for at in range(0, 32 << 20, 4096))"),
        "True"
    );
}
