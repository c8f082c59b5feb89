//! Rollbacks of processes that are still there.

use crate::sandbox::{Sandbox, compiled};

#[test]
fn python_variables_go_back() {
    let mut sandbox = Sandbox::new();
    let mut python = sandbox.python();
    python.ask("x = 1; _ = x");
    let one = sandbox.checkpoint();
    assert_eq!(python.ask("x = x + 1; _ = x"), "2");
    let two = sandbox.checkpoint();
    assert_eq!(python.ask("x = x + 1; _ = x"), "3");
    sandbox.rollback(&one);
    assert_eq!(python.ask("_ = x"), "1");
    sandbox.rollback(&two);
    assert_eq!(python.ask("_ = x"), "2");
    sandbox.rollback(&one);
    assert_eq!(python.ask("x = 'other branch'; _ = x"), "other branch");
    let three = sandbox.checkpoint();
    sandbox.rollback(&two);
    assert_eq!(python.ask("_ = x"), "2");
    sandbox.rollback(&three);
    assert_eq!(python.ask("_ = x"), "other branch");
}

#[test]
fn ten_rollbacks_in_a_row() {
    let mut sandbox = Sandbox::new();
    let mut python = sandbox.python();
    python.ask("x = list(range(100000)); _ = len(x)");
    let image = sandbox.checkpoint();
    for round in 0..10 {
        assert_eq!(
            python.ask("x.reverse(); y = [0] * 300000; _ = x[0]"),
            "99999",
            "round {round}"
        );
        sandbox.rollback(&image);
        assert_eq!(
            python.ask("_ = (x[0], 'y' in globals())"),
            "(0, False)",
            "round {round}"
        );
    }
}

#[test]
fn threads_born_later_go_and_dead_ones_return() {
    let mut sandbox = Sandbox::new();
    let mut python = sandbox.python();
    python.ask("import threading, time, os; n = [0]; stop = []; _ = 0");
    // The thread counts as long as it is allowed to.
    python.ask("exec('def work():\\n  while not stop: n[0] += 1; time.sleep(0.001)')");
    python.ask("t = threading.Thread(target=work); t.start(); _ = t.is_alive()");
    let tids = "_ = sorted(int(t) for t in os.listdir('/proc/self/task'))";
    let before = python.ask(tids);
    let with_thread = sandbox.checkpoint();
    // Ends the thread, starts two others.
    assert_eq!(python.ask("stop.append(1); t.join(); _ = t.is_alive()"), "False");
    python.ask("more = [threading.Thread(target=time.sleep, args=(1000,), daemon=True) for i in range(2)]");
    python.ask("[t.start() for t in more]");
    let after = python.ask(tids);
    assert_ne!(before, after);
    let with_two = sandbox.checkpoint();
    for _ in 0..3 {
        sandbox.rollback(&with_thread);
        assert_eq!(python.ask(tids), before);
        assert_eq!(python.ask("a = n[0]; time.sleep(0.05); _ = n[0] > a + 5"), "True");
        sandbox.rollback(&with_two);
        assert_eq!(python.ask(tids), after);
        assert_eq!(
            python.ask("_ = [t.is_alive() for t in more] + [t.is_alive()]"),
            "[True, True, False]"
        );
    }
    sandbox.rollback(&with_thread);
    assert_eq!(
        python.ask("stop.append(1); t.join(5); _ = (t.is_alive(), threading.active_count())"),
        "(False, 1)"
    );
}

#[test]
fn signals_timers_and_sleeps_go_back() {
    let mut sandbox = Sandbox::new();
    let mut python = sandbox.python();
    python.ask("import signal, time, threading; got = []; _ = 0");
    python.ask("signal.signal(signal.SIGUSR1, lambda *a: got.append('usr1')); signal.pthread_sigmask(signal.SIG_BLOCK, [10]); _ = 0");
    python.ask("signal.raise_signal(10); signal.setitimer(signal.ITIMER_REAL, 1000); _ = 0");
    python
        .ask("t = threading.Thread(target=lambda: (time.sleep(0.3), got.append('slept'))); t.start(); _ = 0");
    let image = sandbox.checkpoint();
    for _ in 0..2 {
        python.ask("t.join(); signal.pthread_sigmask(signal.SIG_UNBLOCK, [10]); signal.setitimer(signal.ITIMER_REAL, 0); _ = 0");
        assert_eq!(python.ask("_ = sorted(got)"), "['slept', 'usr1']");
        python.ask("signal.signal(signal.SIGUSR1, signal.SIG_IGN); _ = 0");
        sandbox.rollback(&image);
        assert_eq!(
            python.ask("_ = ([g for g in got if g != 'slept'], [int(s) for s in signal.sigpending()])"),
            "([], [10])"
        );
        assert_eq!(
            python.ask("_ = 900 < signal.getitimer(signal.ITIMER_REAL)[0] <= 1000"),
            "True"
        );
    }
}

#[test]
fn mappings_go_back() {
    let mut sandbox = Sandbox::new();
    let mut python = sandbox.python();
    python.ask("import mmap; m = mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); m[:] = b'a' * (1 << 20); s = mmap.mmap(-1, 65536); s[:5] = b'first'; _ = 0");
    let image = sandbox.checkpoint();
    for _ in 0..3 {
        python.ask("m.madvise(mmap.MADV_DONTNEED); _ = m[0]");
        python.ask("m.close(); n = [bytes(1 << 18) for i in range(200)]; s[:5] = b'later'; _ = 0");
        sandbox.rollback(&image);
        assert_eq!(
            python.ask("_ = (m[:] == b'a' * (1 << 20), s[:5], 'n' in globals())"),
            "(True, b'first', False)"
        );
    }
    sandbox.kill(python.pid);
    sandbox.rollback(&image);
    assert_eq!(
        python.ask("_ = (m[:] == b'a' * (1 << 20), s[:5], 'n' in globals())"),
        "(True, b'first', False)"
    );
}

#[test]
fn threads_that_sleep_are_left_alone() {
    let mut sandbox = Sandbox::new();
    let mut python = sandbox.python();
    python.ask("import signal, threading, time");
    python.ask("t = [threading.Thread(target=time.sleep, args=(1000,), daemon=True) for i in range(3)]");
    python.ask("[x.start() for x in t]; time.sleep(0.05)");
    // The answer comes before the program waits for the next line.
    std::thread::sleep(std::time::Duration::from_millis(50));
    let (_, first) = sandbox.timed_checkpoint();
    assert_eq!(first.disturbed, 4);
    let (asleep, second) = sandbox.timed_checkpoint();
    assert_eq!(second.disturbed, 0);
    assert_eq!(sandbox.rollback(&asleep).disturbed, 0);
    std::thread::sleep(std::time::Duration::from_millis(500));
    python.ask("signal.signal(signal.SIGUSR1, signal.SIG_IGN); x = 5");
    std::thread::sleep(std::time::Duration::from_millis(50));
    // The main thread has run, and it alone.
    assert_eq!(sandbox.rollback(&asleep).disturbed, 1);
    assert_eq!(
        python.ask("_ = (signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL, 'x' in globals())"),
        "(True, False)"
    );
}

/// A signal handler changes what no register and no variable tells.
#[test]
fn a_thread_that_came_back_to_the_same_call_has_not_slept() {
    let mut sandbox = Sandbox::new();
    let mut program = sandbox.start(&[compiled("back.c").to_str().unwrap()]);
    assert_eq!(program.ask(""), "0 0");
    std::thread::sleep(std::time::Duration::from_millis(50));
    sandbox.checkpoint();
    let before = sandbox.checkpoint();
    let pid = sandbox.engine.host().host_pid(program.pid).unwrap();
    rustix::process::kill_process(pid.pid(), rustix::process::Signal::USR1).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    let (_, after) = sandbox.timed_checkpoint();
    assert_eq!(after.disturbed, 1);
    assert_eq!(program.ask(""), "1 1");
    assert_eq!(sandbox.rollback(&before).disturbed, 1);
    assert_eq!(program.ask(""), "0 0");
}
