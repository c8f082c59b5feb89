//! What a command cannot see and cannot do.

use std::io::Write;

use deltabox_isolation::ExitStatus;

use crate::support::{World, eventually, run, run_spec, sh, start};

#[test]
fn every_namespace_is_the_cells_own() {
    let world = World::new();
    let (one, other) = (world.cell(), world.cell());
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let link = format!("readlink /proc/self/ns/{kind}");
        let inside = sh(&one, &link);
        let outside = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(inside, outside.to_string_lossy());
        assert_ne!(inside, sh(&other, &link));
        one.namespace(kind).unwrap();
    }
    assert_eq!(sh(&one, "hostname"), "box");
    assert_eq!(sh(&one, "cat /proc/self/cgroup | sed -n 's/^0:://p'"), "/run");
    // On v1 too a program sees no path of the machine.
    assert_eq!(sh(&one, "grep -c deltabox /proc/self/cgroup || true"), "0");
    assert_eq!(sh(&one, "ps -eo comm= | head -1"), "init");
}

#[test]
fn root_inside_is_somebody_else_outside() {
    let world = World::new();
    let cell = world.cell();
    assert_eq!(sh(&cell, "id -u; id -g; id -G"), "0\n0\n0");
    let (started, _output) = start(&cell, &["sleep", "100"]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", started.pid)).unwrap();
    let base = cell.uid_base();
    assert!(
        status.contains(&format!("Uid:\t{base}\t{base}\t{base}\t{base}")),
        "{status}"
    );
    let output = run_spec(
        &cell,
        |spec| (spec.uid, spec.gid, spec.groups) = (1000, 1001, vec![1002, 1003]),
        &["sh", "-c", "id -u; id -g; id -G; grep Cap /proc/self/status"],
    );
    assert!(
        output.text.starts_with("1000\n1001\n1001 1002 1003\n"),
        "{}",
        output.text
    );
    for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
        assert!(
            output.text.contains(&format!("{set}:\t0000000000000000")),
            "{}",
            output.text
        );
    }
}

#[test]
fn capabilities_and_privileges_are_what_was_decided() {
    let world = World::new();
    let cell = world.cell();
    // chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, setfcap
    let wanted = 0x8000_05fb_u64;
    let status = sh(&cell, "cat /proc/self/status");
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert!(status.contains(&format!("{set}:\t{wanted:016x}")), "{status}");
    }
    assert!(status.contains("NoNewPrivs:\t1"));
    assert!(status.contains("Seccomp:\t2"));
    // They work: other users' files, becoming others, low ports.
    sh(
        &cell,
        "touch /tmp/f && chown 1000:1000 /tmp/f && chmod 0 /tmp/f && cat /tmp/f",
    );
    let port = "import socket; s=socket.socket(); s.bind(('127.0.0.1',80)); print('bound')";
    assert_eq!(run(&cell, &["python3", "-c", port]).text, "bound\n");
    assert_ne!(
        run(&cell, &["mknod", "/tmp/d", "c", "1", "3"]).status,
        ExitStatus::Code(0)
    );
    assert_eq!(run(&cell, &["mkfifo", "/tmp/fifo"]).status, ExitStatus::Code(0));
}

/// Calls system calls by number and prints the names of the errors.
const CALLER: &str = "
import ctypes, errno, sys
libc = ctypes.CDLL(None, use_errno=True)
for spec in sys.argv[1:]:
    numbers = [int(n, 0) for n in spec.split(',')]
    ctypes.set_errno(0)
    result = libc.syscall(*[ctypes.c_long(n) for n in numbers])
    print('ok' if result >= 0 else errno.errorcode[ctypes.get_errno()])
";

/// Calls each; the errors, in order.
fn call(cell: &deltabox_isolation::Cell, calls: &[&str]) -> Vec<String> {
    let mut argv = vec!["python3", "-c", CALLER];
    argv.extend(calls);
    let output = run(cell, &argv);
    assert_eq!(output.status, ExitStatus::Code(0), "{}", output.text);
    output.text.lines().map(str::to_owned).collect()
}

#[test]
fn system_calls_are_refused_as_the_profile_says() {
    let world = World::new();
    let cell = world.cell();
    let cases = [
        ("425,1,0", "ENOSYS"),                  // io_uring_setup
        ("323,0", "EPERM"),                     // userfaultfd
        ("321,0,0,0", "EPERM"),                 // bpf
        ("250,0,0", "ENOSYS"),                  // keyctl
        ("246,0,0,0,0", "EPERM"),               // kexec_load
        ("175,0,0,0", "EPERM"),                 // init_module
        ("298,0,0,0,0,0", "EACCES"),            // perf_event_open
        ("165,0,0,0,0,0", "EPERM"),             // mount
        ("166,0,2", "EPERM"),                   // umount2
        ("155,0,0", "EPERM"),                   // pivot_root
        ("430,0,0", "EPERM"),                   // fsopen
        ("429,0,0,0,0,0", "EPERM"),             // move_mount
        ("308,0,0", "EPERM"),                   // setns
        ("272,0x10000000", "EPERM"),            // unshare user
        ("272,0x00020000", "EPERM"),            // unshare mount
        ("272,0x80", "EPERM"),                  // unshare time
        ("272,0x200", "ok"),                    // unshare the working directory
        ("56,0x10000011,0,0,0,0", "EPERM"),     // clone with a user namespace
        ("435,0,0", "ENOSYS"),                  // clone3
        ("304,0,0,0", "EPERM"),                 // open_by_handle_at
        ("16,0,0x5412,0", "EPERM"),             // TIOCSTI
        ("16,0,0xffffffff00005412,0", "EPERM"), // the kernel looks at 32 bits of it
        ("41,38,5,0", "EAFNOSUPPORT"),          // AF_ALG
        ("41,40,1,0", "EAFNOSUPPORT"),          // AF_VSOCK
        ("41,17,3,0", "EAFNOSUPPORT"),          // AF_PACKET
        ("41,2,1,0", "ok"),                     // TCP
        ("41,10,2,0", "ok"),                    // UDP over IPv6
        ("41,1,1,0", "ok"),                     // local
        ("41,16,3,0", "ok"),                    // routing
        ("41,16,3,12", "EPROTONOSUPPORT"),      // netfilter
        ("41,2,3,1", "EPERM"),                  // raw ICMP: no capability
        ("135,0xffffffff", "ok"),               // ask the personality
        ("135,0x0040000", "ok"),                // ADDR_NO_RANDOMIZE
        ("135,0x0400000", "EPERM"),             // READ_IMPLIES_EXEC
        ("135,0x0100000", "EPERM"),             // MMAP_PAGE_ZERO
        ("447,0", "ENOSYS"),                    // memfd_secret
        ("444,0,0,0", "ENOSYS"),                // landlock_create_ruleset
        ("139,1,0,0", "ENOSYS"),                // sysfs: named nowhere
        ("999", "ENOSYS"),                      // of the future
        ("0x40000027", "ENOSYS"),               // getpid of the x32 interface
        ("103,2,0,0", "EPERM"),                 // syslog
        ("169,0,0,0,0", "EPERM"),               // reboot
    ];
    let calls: Vec<&str> = cases.iter().map(|(call, _)| *call).collect();
    let found = call(&cell, &calls);
    for ((spec, wanted), found) in cases.iter().zip(&found) {
        assert_eq!(found, wanted, "system call {spec}");
    }
    assert_eq!(found.len(), cases.len());
}

#[test]
fn the_32_bit_entry_is_closed() {
    let world = World::new();
    let cell = world.cell();
    // mov eax, 20 (getpid); int 0x80; ret
    let program = "
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(b'\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3')
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))())
";
    let ended = run(&cell, &["python3", "-c", program]);
    assert!(!matches!(ended.status, ExitStatus::Code(0)), "{ended:?}");
}

#[test]
fn the_machine_is_hidden_and_its_settings_cannot_be_changed() {
    let world = World::new();
    let cell = world.cell();
    for path in [
        "/proc/kcore",
        "/proc/keys",
        "/proc/timer_list",
        "/proc/kmsg",
        "/proc/sysrq-trigger",
    ] {
        if std::path::Path::new(path).exists() {
            assert_eq!(sh(&cell, &format!("head -c 10 {path} | wc -c")), "0", "{path}");
        }
    }
    for dir in ["/sys/firmware", "/proc/acpi", "/proc/scsi", "/sys/fs/cgroup"] {
        if std::path::Path::new(dir).exists() {
            assert_eq!(sh(&cell, &format!("ls -A {dir} | wc -l")), "0", "{dir}");
        }
    }
    for write in [
        "echo 1 > /proc/sys/kernel/panic",
        "echo x > /proc/sys/kernel/hostname",
        "echo 5 > /proc/sys/kernel/ns_last_pid",
        "echo 1 > /proc/sys/user/max_user_namespaces",
        "touch /sys/x",
        "touch /dev/x",
        "rm /dev/null",
        "chmod 777 /dev/null",
        "echo b > /proc/irq/default_smp_affinity",
        "mount -t tmpfs none /mnt",
        "umount /proc/kcore",
        "umount /proc",
        "mount -o remount,rw /proc/sys",
        "unshare -r true",
        "unshare -m true",
        "chroot / true",
        "hostname changed",
    ] {
        let output = run(&cell, &["sh", "-c", write]);
        assert!(
            !matches!(output.status, ExitStatus::Code(0)),
            "{write}: {}",
            output.text
        );
    }
    assert_eq!(sh(&cell, "cat /proc/sys/user/max_user_namespaces"), "0");
    assert_eq!(sh(&cell, "cat /proc/sys/kernel/hostname"), "box");
}

#[test]
fn devices_are_there_and_work() {
    let world = World::new();
    let cell = world.cell();
    assert_eq!(
        sh(
            &cell,
            "head -c 8 /dev/zero | wc -c; head -c 8 /dev/urandom | wc -c; echo x > /dev/null"
        ),
        "8\n8"
    );
    assert_ne!(
        run(&cell, &["sh", "-c", "echo x > /dev/full"]).status,
        ExitStatus::Code(0)
    );
    assert_eq!(
        sh(&cell, "ls /dev | tr '\\n' ' '"),
        "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    );
    // Shared memory lies in the layers of the root, where a checkpoint sees it.
    assert_eq!(
        sh(&cell, "stat -f -c %T /dev/shm/; stat -L -c %a /dev/shm"),
        "overlayfs\n1777"
    );
    let shared = "from multiprocessing import shared_memory as m; s=m.SharedMemory(create=True,size=4096); s.buf[0]=7; print(s.buf[0]); s.unlink()";
    assert_eq!(run(&cell, &["python3", "-c", shared]).text, "7\n");
    assert_eq!(
        run(
            &cell,
            &[
                "python3",
                "-c",
                "import pty,os; m,s=pty.openpty(); print(os.ttyname(s)[:9])"
            ]
        )
        .text,
        "/dev/pts/\n"
    );
    assert_eq!(
        sh(&cell, "grep -c ' tmpfs ' /proc/self/mounts"),
        sh(&cell, "grep ' tmpfs ' /proc/self/mounts | grep -c ' ro,'")
    );
}

#[test]
fn the_network_is_loopback_only() {
    let world = World::new();
    let cell = world.cell();
    assert_eq!(
        sh(&cell, "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '"),
        "lo"
    );
    let talk = "
import socket
server = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(server.getsockname())
server.accept()[0].send(b'hello')
print(client.recv(10).decode())
six = socket.create_server(('::1', 0), family=socket.AF_INET6)
print(six.getsockname()[0])
try: socket.create_connection(('192.0.2.1', 80), timeout=2)
except OSError as e: print(e.strerror)
";
    assert_eq!(
        run(&cell, &["python3", "-c", talk]).text,
        "hello\n::1\nNetwork is unreachable\n"
    );
}

#[test]
fn init_is_out_of_reach() {
    let world = World::new();
    let cell = world.cell();
    for attack in [
        "kill -9 1",
        "kill -TERM 1",
        "kill -STOP 1",
        "cat /proc/1/environ",
        "cat /proc/1/mem",
        "ls -l /proc/1/fd/",
        "ls /proc/1/cwd/",
        "cat /proc/1/maps",
        "cat /proc/1/syscall",
        "nsenter -t 1 -m true",
        "echo 0 > /proc/1/oom_score_adj",
        "python3 -c 'import ctypes,sys; sys.exit(ctypes.CDLL(None).ptrace(16,1,0,0) != 0)'",
    ] {
        let output = run(&cell, &["sh", "-c", attack]);
        let harmless = attack.starts_with("kill");
        assert!(
            harmless || !matches!(output.status, ExitStatus::Code(0)),
            "{attack}: {}",
            output.text
        );
        assert!(!output.text.contains("socket:"), "{attack}: {}", output.text);
    }
    // Everyone at once: the command dies of it, init does not.
    let (_bystander, _output) = start(&cell, &["sleep", "100"]);
    run(&cell, &["sh", "-c", "kill -9 -1"]);
    eventually("all are gone", || cell.cgroup().procs().unwrap().is_empty());
    cell.ping().unwrap();
    eventually("init sleeps again", || {
        sh(&cell, "cat /proc/1/stat | cut -d' ' -f3") == "S"
    });
}

#[test]
fn commands_may_debug_each_other_within_one_identity() {
    let world = World::new();
    let cell = world.cell();
    let (_sleeper, _output) = start(&cell, &["sleep", "100"]);
    sh(&cell, "strace -f -o /tmp/trace true && grep -q execve /tmp/trace");
    let other = run_spec(
        &cell,
        |s| (s.uid, s.gid) = (1000, 1000),
        &["sh", "-c", "cat /proc/2/environ /proc/3/environ"],
    );
    assert!(!matches!(other.status, ExitStatus::Code(0)), "{other:?}");
}

#[test]
fn ordinary_programs_work() {
    let world = World::new();
    let cell = world.cell();
    let mut source = tempfile(&cell, "/tmp/hello.c");
    source
        .write_all(b"#include <stdio.h>\nint main(void){puts(\"compiled\");return 0;}\n")
        .unwrap();
    drop(source);
    assert_eq!(sh(&cell, "cd /tmp && cc -o hello hello.c && ./hello"), "compiled");
    assert_eq!(
        sh(
            &cell,
            "cd /tmp && git init -q r && cd r && echo a > a && git add a && git -c user.name=a -c user.email=b commit -q -m m && git log --oneline | wc -l"
        ),
        "1"
    );
    let parallel = "import concurrent.futures as f, threading\nprint(sum(f.ThreadPoolExecutor(8).map(lambda n: n, range(9))))";
    assert_eq!(run(&cell, &["python3", "-c", parallel]).text, "36\n");
    assert_eq!(
        sh(
            &cell,
            "gdb -q -batch -ex run -ex quit /bin/true 2>&1 | grep -c 'exited normally'"
        ),
        "1"
    );
    assert_eq!(
        run(
            &cell,
            &[
                "python3",
                "-c",
                "import subprocess; print(subprocess.run(['echo','x'],capture_output=True).stdout)"
            ]
        )
        .text,
        "b'x\\n'\n"
    );
    assert_eq!(
        sh(
            &cell,
            "python3 -c 'import sqlite3; c=sqlite3.connect(\"/tmp/db\"); c.execute(\"create table t(a)\"); print(1)'"
        ),
        "1"
    );
}

/// A new file inside, owned by the cell's root.
fn tempfile(cell: &deltabox_isolation::Cell, path: &str) -> std::fs::File {
    sh(cell, &format!("touch {path}"));
    let root = cell.root().unwrap();
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::openat(
        root,
        path.trim_start_matches('/'),
        flags,
        rustix::fs::Mode::empty(),
    )
    .unwrap()
    .into()
}
