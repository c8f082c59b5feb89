//! Pseudo terminals: of the sandbox, and with the caller as master.

mod descriptor_common;
use std::os::fd::AsFd;
use std::process::Command;

use deltabox_process::descriptor::ExternalId;
use descriptor_common::Target;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};

#[test]
fn a_terminal_within_the_sandbox_comes_back() {
    Target::start(
        r#"
master, slave = os.openpty()
number = os.ttyname(slave)
fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 1, 2))
settings = termios.tcgetattr(slave)
settings[3] &= ~termios.ECHO
settings[6][termios.VINTR] = b"\x07"
termios.tcsetattr(slave, termios.TCSANOW, settings)
os.write(master, b"typed ahead\nand a li")
os.write(slave, b"prompt> ")
def pending(fd):
    return struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0]
def change():
    os.read(slave, 100)
    os.read(master, 100)
    os.write(slave, b"something else")
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 1, 1, 0, 0))
    raw = termios.tcgetattr(slave)
    raw[3] = 0
    termios.tcsetattr(slave, termios.TCSANOW, raw)
def check():
    assert os.ttyname(slave) == number
    assert fcntl.ioctl(slave, termios.TIOCGWINSZ, bytes(8)) == struct.pack("HHHH", 33, 99, 1, 2)
    assert termios.tcgetattr(slave) == settings
    assert pending(slave) == 12, pending(slave)
    assert os.read(master, 100) == b"prompt> "
    assert os.read(slave, 100) == b"typed ahead\n"
    os.write(master, b"ne\n")
    assert os.read(slave, 100) == b"and a line\n"
    os.write(master, b"typed ahead\nand a li")
    os.write(slave, b"prompt> ")
steps(change, check)
"#,
    )
    .round_trip();
}

#[test]
fn a_closed_terminal_is_made_again_with_its_number() {
    Target::start(
        r#"
first = os.openpty()
master, slave = os.openpty()
number = os.ttyname(slave)
fcntl.ioctl(master, 0x5420, struct.pack("i", 1))
os.write(slave, b"output")
def change():
    os.close(master)
    os.close(slave)
def check():
    assert os.ttyname(slave) == number
    assert os.read(master, 100) == b"\0output", "packet mode is lost"
    os.write(slave, b"output")
steps(change, check)
"#,
    )
    .round_trip_changing_inodes();
}

#[test]
fn the_foreground_group_comes_back() {
    Target::start(
        r#"
to_leader, from_parent = os.pipe()
to_parent, from_leader = os.pipe()
master, slave = os.openpty()
leader = os.fork()
if leader == 0:
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    tty = os.open("/dev/tty", os.O_RDWR)
    job = os.fork()
    if job == 0:
        os.setpgid(0, 0)
        while True:
            signal.pause()
    try:
        os.setpgid(job, job)
    except OSError:
        pass
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    os.tcsetpgrp(tty, job)
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.write(from_leader, b"k")
    while True:
        word = os.read(to_leader, 1)
        answer = b"k"
        if word == b"c":
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(tty, os.getpid())
            signal.signal(signal.SIGTTOU, signal.SIG_DFL)
            os.close(tty)
        elif word == b"?":
            answer = b"k" if os.tcgetpgrp(tty) == job else b"n"
        elif word == b"":
            os._exit(0)
        os.write(from_leader, answer)
assert os.read(to_parent, 1) == b"k"
def tell(word):
    os.write(from_parent, word)
    return os.read(to_parent, 1)
def change():
    tell(b"c")
def check():
    assert tell(b"?") == b"k"
steps(change, check)
"#,
    )
    .round_trip();
}

#[test]
fn a_terminal_of_the_caller_keeps_its_settings_and_its_input() {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).unwrap();
    unlockpt(&master).unwrap();
    let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
    let mut command = Command::new("sh");
    let inner = slave.try_clone().unwrap();
    command.args(["-c", "exec python3 \"$@\"", "sh"]).stderr(inner);
    let mut target = Target::start_with(
        r#"
slave = 2
settings = termios.tcgetattr(slave)
settings[3] &= ~(termios.ECHO | termios.ICANON)
termios.tcsetattr(slave, termios.TCSANOW, settings)

def change():
    other = termios.tcgetattr(slave)
    other[3] |= termios.ICANON | termios.ECHO
    termios.tcsetattr(slave, termios.TCSANOW, other)
def check():
    assert termios.tcgetattr(slave)[3] == settings[3]
    assert os.read(slave, 100) == b"keys\n"
steps(change, check)
"#,
        &mut command,
        |externals| externals.register(ExternalId(7), slave.as_fd()).unwrap(),
    );
    drop(slave);
    target.expect("ready");
    let tables = target.capture();
    target.ask("change", "changed");
    rustix::io::write(&master, b"keys\n").unwrap();
    target.restore(&tables);
    target.ask("check", "PASS");
}
