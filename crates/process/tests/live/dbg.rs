use crate::sandbox::Sandbox;
#[test]
fn dbg() {
    let mut sandbox = Sandbox::new();
    let mut shell = sandbox.start(&["/bin/bash", "--norc"]);
    assert_eq!(shell.ask("echo ready"), "ready");
    if std::env::var("CHILD").is_ok() { shell.tell("sleep 1000 & a=$!"); }
    shell.ask("echo started");
    if std::env::var("NOCP").is_err() { sandbox.checkpoint(); }
    let host = sandbox.engine.host().host_pid(shell.pid).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    let p = |f: &str| println!("{f}: {}", std::fs::read_to_string(format!("/proc/{host}/{f}")).unwrap());
    p("status"); p("wchan"); p("syscall");
    println!("{}", shell.ask("echo hi"));
    shell.tell("kill -9 $a; wait");
    std::thread::sleep(std::time::Duration::from_millis(300));
    println!("{}", String::from_utf8_lossy(&std::process::Command::new("sh").arg("-c").arg("ps -eo pid,ppid,stat,wchan:30,args | grep -A8 build-init; ps -eo pid,ppid,stat,wchan:30,args | tail -12").output().unwrap().stdout));
    p("syscall"); p("status");
}
