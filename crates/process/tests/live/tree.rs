//! Processes that are not there any more are made again, and new ones go.

use crate::sandbox::{Program, Sandbox};

#[test]
fn a_killed_python_returns_with_pid_and_memory() {
    let mut sandbox = Sandbox::new();
    let mut python = sandbox.python();
    python.ask("import os; x = {n: str(n) for n in range(10000)}; _ = 0");
    let pid = python.ask("_ = os.getpid()");
    let image = sandbox.checkpoint();
    for _ in 0..3 {
        python.ask("x.clear(); _ = 0");
        sandbox.kill(python.pid);
        let report = sandbox.rollback(&image);
        assert_eq!((report.created, report.in_place), (1, 0));
        assert_eq!(python.ask("_ = os.getpid()"), pid);
        assert_eq!(python.ask("_ = len(x), x[9999]"), "(10000, '9999')");
        assert_eq!(
            python.ask("_ = os.readlink('/proc/self/exe')"),
            "/usr/bin/python3.11"
        );
    }
}

#[test]
fn a_killed_thread_holder_returns_with_its_threads() {
    let mut sandbox = Sandbox::new();
    let mut python = sandbox.python();
    python.ask("import os, threading, time; n = [0]; _ = 0");
    python.ask("exec('def work():\\n  while True: n[0] += 1; time.sleep(0.001)')");
    python.ask(
        "ts = [threading.Thread(target=work, daemon=True) for i in range(3)]; [t.start() for t in ts]; _ = 0",
    );
    let tids = python.ask("_ = sorted(os.listdir('/proc/self/task'))");
    let image = sandbox.checkpoint();
    sandbox.kill(python.pid);
    sandbox.rollback(&image);
    assert_eq!(python.ask("_ = sorted(os.listdir('/proc/self/task'))"), tids);
    assert_eq!(
        python.ask("a = n[0]; time.sleep(0.05); _ = n[0] > a + 10"),
        "True"
    );
}

fn shell(sandbox: &mut Sandbox) -> Program {
    let mut shell = sandbox.start(&["/bin/bash", "--norc"]);
    assert_eq!(shell.ask("echo ready"), "ready");
    shell
}

#[test]
fn a_shell_with_children_goes_back() {
    let mut sandbox = Sandbox::new();
    let mut shell = shell(&mut sandbox);
    shell.tell("x=1; sleep 1000 & a=$!; (sleep 1001; true) & b=$!");
    shell.ask("echo started");
    std::thread::sleep(std::time::Duration::from_millis(50));
    let before = shell.ask("ps -o pid=,ppid=,pgid=,sid=,args= -A | grep '[s]leep' | tr '\\n' ';'; echo");
    let image = sandbox.checkpoint();
    shell.tell("x=2; kill -9 $a $b; wait; sleep 2000 & sleep 2001 &");
    shell.ask("echo changed");
    for round in 0..3 {
        let report = sandbox.rollback(&image);
        assert_eq!(report.in_place, if round == 0 { 1 } else { 4 }, "{report:?}");
        let now = shell.ask("ps -o pid=,ppid=,pgid=,sid=,args= -A | grep '[s]leep' | tr '\\n' ';'; echo");
        assert_eq!(now, before);
        assert_eq!(shell.ask("echo $x"), "1");
    }
    assert_eq!(shell.ask("kill $a; wait $a; echo $?"), "143");
    assert_eq!(shell.ask("kill $b; wait $b; echo $?"), "143");
    sandbox.rollback(&image);
    assert_eq!(shell.ask("kill -9 $a; wait $a; echo $?"), "137");
    sandbox.kill(shell.pid);
    sandbox.rollback(&image);
    let now = shell.ask("ps -o pid=,ppid=,pgid=,sid=,args= -A | grep '[s]leep' | tr '\\n' ';'; echo");
    assert_eq!(now, before);
    assert_eq!(shell.ask("kill $a; wait $a; echo $?"), "143");
}

#[test]
fn zombies_are_part_of_the_state() {
    let mut sandbox = Sandbox::new();
    let mut python = sandbox.python();
    python.ask("import os, signal, time; _ = 0");
    python.ask("exec('def child(f):\\n  p = os.fork()\\n  if p == 0:\\n    f(); os._exit(9)\\n  return p')");
    python.ask(
        "a = child(lambda: os._exit(7)); b = child(lambda: os.kill(os.getpid(), 15)); time.sleep(0.1); _ = 0",
    );
    let image = sandbox.checkpoint();
    let wait = "_ = [os.waitpid(p, 0)[1] for p in (a, b)]";
    assert_eq!(python.ask(wait), "[1792, 15]");
    sandbox.rollback(&image);
    assert_eq!(python.ask(wait), "[1792, 15]");
    sandbox.rollback(&image);
    python.ask("c = child(lambda: 0); time.sleep(0.05); _ = 0");
    sandbox.rollback(&image);
    assert_eq!(
        python.ask("_ = (sorted(os.waitpid(-1, 0)[0] for i in range(2)) == [a, b])"),
        "True"
    );
    python.ask("exec('try: os.wait(); _ = 1\\nexcept ChildProcessError: _ = \"none\"')");
    assert_eq!(python.ask("_ = _"), "none");
}

#[test]
fn orphans_and_sessions_return() {
    let mut sandbox = Sandbox::new();
    let mut shell = shell(&mut sandbox);
    shell.tell("(sleep 1000 &) ; setsid sleep 1001 & (setsid bash -c 'sleep 1002 & exit' &); sleep 0.2");
    shell.ask("echo started");
    let list = "ps -o pid=,ppid=,pgid=,sid=,args= -A | grep '[s]leep 100' | tr '\\n' ';'; echo";
    let before = shell.ask(list);
    assert_eq!(before.matches("sleep").count(), 3, "{before}");
    let image = sandbox.checkpoint();
    shell.tell("pkill -9 -x sleep; wait");
    shell.ask("echo killed");
    sandbox.rollback(&image);
    assert_eq!(shell.ask(list), before);
    shell.tell("pkill -9 -x sleep");
    shell.ask("echo killed");
    sandbox.kill(shell.pid);
    sandbox.rollback(&image);
    assert_eq!(shell.ask(list), before);
}
