//! Sockets: unix, TCP, UDP, netlink.

mod descriptor_common;
use descriptor_common::Target;

#[test]
fn pairs_keep_what_is_queued() {
    Target::start(
        r#"
a, b = socket.socketpair()
a.send(b"queued")
b.send(b"the other way")
da, db = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
da.send(b"one"); da.send(b"two")
sa, sb = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sa.send(b"first"); sa.send(b"second")
half, other = socket.socketpair()
half.send(b"end"); half.shutdown(socket.SHUT_WR)
lonely, gone = socket.socketpair()
gone.send(b"farewell"); gone.close()
a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 50000)
a.settimeout(None)
b.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
cred = a.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
size = a.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
def table():
    return sorted(int(n) for n in os.listdir("/proc/self/fd"))[:-1]
def change():
    b.recv(100)
    a.send(b"later")
    da.send(b"three")
    os.close(sa.fileno())
    other.recv(10)
    lonely.recv(3)
    a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4000)
    b.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
def check():
    assert b.recv(100) == b"queued" and a.recv(100) == b"the other way"
    a.send(b"queued"); b.send(b"the other way")
    assert [db.recv(10) for _ in range(2)] == [b"one", b"two"]
    da.send(b"one"); da.send(b"two")
    assert [sb.recv(10) for _ in range(2)] == [b"first", b"second"]
    sa.send(b"first"); sa.send(b"second")
    assert other.recv(10) == b"end" and other.recv(10) == b""
    assert lonely.recv(20) == b"farewell" and lonely.recv(20) == b""
    assert a.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == size
    assert b.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED) == 1
    assert a.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12) == cred
steps(change, check)
"#,
    )
    .round_trip_once();
}

/// A peer that closed without having read everything: an error behind the last data.
#[test]
fn a_reset_that_nobody_has_seen_yet_comes_back() {
    Target::start(
        r#"
a, b = socket.socketpair()
a.send(b"never read")
b.send(b"last words")
b.close()
c, d = socket.socketpair()
c.send(b"never read")
d.close()
def table():
    return sorted(int(n) for n in os.listdir("/proc/self/fd"))[:-1]
def error(s):
    try:
        s.recv(10)
    except ConnectionResetError:
        return True
def change():
    a.recv(100)
    error(a), error(c)
def check():
    assert a.recv(100) == b"last words"
    assert error(a) and a.recv(10) == b"" and error(c)
steps(change, check)
"#,
    )
    .round_trip_once();
}

#[test]
fn datagram_sockets_whose_peer_is_gone_come_back() {
    Target::start(
        r#"
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
b.send(b"farewell"); b.send(b"last")
b.close()
named = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
named.bind("@DIR@/named")
other = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
other.bind("@DIR@/other")
named.connect("@DIR@/other")
other.sendto(b"queued", "@DIR@/named")
other.close()
os.unlink("@DIR@/other")
def table():
    return sorted(int(n) for n in os.listdir("/proc/self/fd"))[:-1]
def refused(s):
    try:
        s.send(b"x")
    except ConnectionRefusedError:
        return True
def change():
    a.recv(100), named.recv(100)
    os.close(named.fileno())
def check():
    assert [a.recv(100) for _ in range(2)] == [b"farewell", b"last"] and refused(a)
    assert named.recvfrom(100) == (b"queued", "@DIR@/other") and refused(named)
steps(change, check)
"#,
    )
    .round_trip_once();
}

#[test]
fn queued_descriptors_and_credentials_come_back() {
    Target::start(
        r#"
a, b = socket.socketpair()
shared = os.open("@DIR@/shared", os.O_RDWR | os.O_CREAT)
os.write(shared, b"0123456789")
only_queued = os.open("@DIR@/queued", os.O_RDWR | os.O_CREAT)
os.write(only_queued, b"in flight")
r, w = os.pipe()
os.write(w, b"piped")
inner, deep = socket.socketpair()
socket.send_fds(inner, [b"nested"], [shared])
b.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
socket.send_fds(a, [b"take"], [shared, only_queued, r])
socket.send_fds(a, [b"more"], [deep.fileno()])
os.close(only_queued)
os.close(r)
deep.close()
os.lseek(shared, 3, 0)
def table():
    return sorted(int(n) for n in os.listdir("/proc/self/fd"))[:-1]
def change():
    message, fds, flags, _ = socket.recv_fds(b, 100, 10)
    for fd in fds:
        os.close(fd)
    os.close(a.fileno())
def check():
    message, ancillary, flags, _ = b.recvmsg(100, 1000)
    fds, cred = [], None
    for level, kind, data in ancillary:
        if kind == socket.SCM_RIGHTS:
            fds = list(struct.unpack(f"{len(data) // 4}i", data))
        else:
            cred = struct.unpack("iII", data)
    assert message == b"take" and len(fds) == 3, (message, fds)
    assert cred == (os.getpid(), os.getuid(), os.getgid()), cred
    assert os.lseek(fds[0], 0, 1) == 3
    os.lseek(shared, 5, 0)
    assert os.lseek(fds[0], 0, 1) == 5, "not the same description any more"
    os.lseek(shared, 3, 0)
    assert os.pread(fds[1], 20, 0) == b"in flight"
    assert os.read(fds[2], 10) == b"piped"
    message, more, flags, _ = socket.recv_fds(b, 100, 10)
    assert message == b"more" and len(more) == 1
    message, last, flags, _ = socket.recv_fds(socket.socket(fileno=more[0]), 100, 10)
    assert message == b"nested" and os.lseek(last[0], 0, 1) == 3
    for fd in fds + last:
        os.close(fd)
steps(change, check)
"#,
    )
    .round_trip_once();
}

#[test]
fn listeners_and_their_connections_come_back() {
    Target::start(
        r#"
path = "@DIR@/listener"
named = socket.socket(socket.AF_UNIX)
named.bind(path)
os.chmod(path, 0o751)
named.listen(5)
hidden = socket.socket(socket.AF_UNIX)
hidden.bind(b"\0hidden-" + str(os.getpid()).encode())
hidden.listen(7)
client = socket.socket(socket.AF_UNIX)
client.connect(path)
server, _ = named.accept()
client.send(b"hello")
waiting = socket.socket(socket.AF_UNIX)
waiting.connect(path)
abstract_client = socket.socket(socket.AF_UNIX)
abstract_client.connect(hidden.getsockname())
abstract_server, _ = hidden.accept()
os.chdir("@DIR@")
relative = socket.socket(socket.AF_UNIX)
relative.bind("rel")
relative.listen()
def table():
    return sorted(int(n) for n in os.listdir("/proc/self/fd"))[:-1]
everything = [named, hidden, client, server, waiting, abstract_client, abstract_server, relative]
def change():
    for s in everything:
        os.close(s.fileno())
    other = socket.socket(socket.AF_UNIX)
    other.connect_ex(path)
def connect(to):
    s = socket.socket(socket.AF_UNIX)
    s.connect(to)
    return s
def check():
    assert server.recv(10) == b"hello"
    client.send(b"hello")
    accepted, _ = named.accept()
    waiting.send(b"x")
    assert accepted.recv(1) == b"x", "another one waited"
    new = connect(path)
    accepted, _ = named.accept()
    assert server.getsockname() == path and client.getpeername() == path and client.getsockname() == ""
    assert abstract_server.getsockname() == hidden.getsockname()
    abstract_client.send(b"a")
    assert abstract_server.recv(1) == b"a"
    assert relative.getsockname() == "rel"
    new = connect("rel")
    for s in (client, server, abstract_client):
        assert struct.unpack("iII", s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0] == os.getpid()
    mode = os.stat(path)
    assert stat.S_ISSOCK(mode.st_mode) and mode.st_mode & 0o777 == 0o751
    assert sorted(n for n in os.listdir("@DIR@")) == ["listener", "rel"]
steps(change, check)
"#,
    )
    .round_trip_once();
}

/// What clients left behind in connections that nobody has accepted before they went away.
#[test]
fn what_waits_to_be_accepted_comes_back() {
    Target::start(
        r#"
os.chdir("@DIR@")
listener = socket.socket(socket.AF_UNIX)
listener.bind("listener")
listener.listen(9)
def connect():
    s = socket.socket(socket.AF_UNIX)
    s.connect("listener")
    return s
r, w = os.pipe()
os.write(w, b"piped")
first, second = connect(), connect()
first.send(b"farewell")
first.close()
socket.send_fds(second, [b"with a pipe"], [r])
second.close()
os.close(r)
poll = select.epoll()
poll.register(listener, select.EPOLLIN)
def table():
    return sorted(int(n) for n in os.listdir("/proc/self/fd"))[:-1]
def change():
    accepted, _ = listener.accept()
    accepted.close()
def check():
    assert poll.poll(0) == [(listener.fileno(), select.EPOLLIN)]
    accepted = [listener.accept()[0] for _ in range(2)]
    assert not poll.poll(0)
    for s in accepted:
        s.settimeout(2)
    assert [accepted[0].recv(100) for _ in range(2)] == [b"farewell", b""]
    message, fds, flags, _ = socket.recv_fds(accepted[1], 100, 10)
    assert message == b"with a pipe" and os.read(fds[0], 10) == b"piped"
    assert accepted[1].recv(100) == b""
    assert struct.unpack("iII", accepted[1].getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0] == os.getpid()
    for s in accepted:
        s.close()
    os.close(fds[0])
steps(change, check)
"#,
    )
    .round_trip_once();
}

/// The file of a socket may be somewhere else than its name says, or nowhere.
#[test]
fn sockets_with_renamed_and_removed_files_come_back() {
    Target::start(
        r#"
os.chdir("@DIR@")
renamed = socket.socket(socket.AF_UNIX)
renamed.bind("before")
renamed.listen()
os.rename("before", "after")
removed = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
removed.bind("@DIR@/removed")
client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
client.connect("removed")
os.unlink("removed")
client.send(b"one"); client.send(b""); client.send(b"three")
os.mkdir("sub")
os.chdir("sub")
def table():
    return sorted(int(n) for n in os.listdir("/proc/self/fd"))[:-1]
def change():
    for s in (renamed, removed, client):
        os.close(s.fileno())
def check():
    assert sorted(os.listdir("..")) == ["after", "sub"] and os.listdir(".") == []
    assert renamed.getsockname() == "before" and removed.getsockname() == "@DIR@/removed"
    s = socket.socket(socket.AF_UNIX)
    s.connect("../after")
    renamed.accept()
    assert [removed.recv(10) for _ in range(3)] == [b"one", b"", b"three"]
    client.send(b"one"); client.send(b""); client.send(b"three")
steps(change, check)
"#,
    )
    .round_trip_once();
}

#[test]
fn named_datagram_sockets_come_back() {
    Target::start(
        r#"
server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
server.bind("@DIR@/dgram")
client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
client.bind("@DIR@/client")
client.connect("@DIR@/dgram")
client.send(b"one")
nameless = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
nameless.sendto(b"two", "@DIR@/dgram")
def table():
    return sorted(int(n) for n in os.listdir("/proc/self/fd"))[:-1]
def change():
    server.recv(10)
    os.close(client.fileno())
    os.close(server.fileno())
def check():
    assert server.recvfrom(10) == (b"one", "@DIR@/client")
    assert server.recvfrom(10) == (b"two", None)
    client.send(b"one")
    nameless.sendto(b"two", "@DIR@/dgram")
    assert client.getpeername() == "@DIR@/dgram"
steps(change, check)
"#,
    )
    .round_trip_once();
}

const TCP: &str = r#"
def table():
    return sorted(int(n) for n in os.listdir("/proc/self/fd"))[:-1]
"#;

#[test]
fn tcp_connections_come_back() {
    for (family, any) in [("AF_INET", "127.0.0.1"), ("AF_INET6", "::1")] {
        let program = r#"
listener = socket.socket(socket.FAMILY)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("ADDRESS", 0))
listener.listen(9)
def connect():
    s = socket.socket(socket.FAMILY)
    s.connect(listener.getsockname())
    return s
client = connect()
client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
server, _ = listener.accept()
client.send(b"hello")
server.send(b"and back")
big = connect()
receiver, _ = listener.accept()
big.setblocking(False)
sent = b""
try:
    while True:
        block = os.urandom(65536)
        sent += block[:big.send(block)]
except BlockingIOError:
    pass
half = connect()
halved, _ = listener.accept()
half.send(b"bye")
half.shutdown(socket.SHUT_WR)
waiting = connect()
names = [s.getsockname() for s in (listener, client, server, big, half)], client.getpeername()
everything = [listener, client, server, half, halved, waiting]
def change():
    server.recv(3)
    client.send(b"more")
    receiver.recv(100000)
    for s in everything:
        os.close(s.fileno())
def read(s, n):
    got = b""
    while len(got) < n:
        piece = s.recv(n - len(got))
        assert piece
        got += piece
    return got
def check():
    assert ([s.getsockname() for s in (listener, client, server, big, half)], client.getpeername()) == names
    assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert read(server, 5) == b"hello" and read(client, 8) == b"and back"
    client.send(b"hello"); server.send(b"and back")
    assert read(receiver, len(sent)) == sent
    assert halved.recv(10) == b"bye" and halved.recv(10) == b""
    halved.send(b"still")
    assert half.recv(10) == b"still"
    accepted, _ = listener.accept()
    waiting.send(b"w")
    assert accepted.recv(1) == b"w"
    extra = connect()
    accepted, _ = listener.accept()
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
steps(change, check)
"#
        .replace("FAMILY", family)
        .replace("ADDRESS", any);
        Target::start(&format!("{TCP}{program}")).round_trip_once();
    }
}

#[test]
fn udp_keeps_addresses_and_datagrams() {
    Target::start(
        r#"
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 0))
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.connect(server.getsockname())
client.send(b"one"); client.send(b"two")
me, it = client.getsockname(), server.getsockname()
def table():
    return sorted(int(n) for n in os.listdir("/proc/self/fd"))[:-1]
def change():
    server.recv(10)
    client.send(b"three")
    os.close(client.fileno())
def check():
    assert [server.recvfrom(10) for _ in range(2)] == [(b"one", me), (b"two", me)]
    client.send(b"one"); client.send(b"two")
    server.setblocking(False)
    assert client.getsockname() == me and client.getpeername() == it
steps(change, check)
"#,
    )
    .round_trip_changing_inodes();
}

#[test]
fn netlink_keeps_its_port() {
    Target::start(
        r#"
n = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
n.bind((0, 1))
name = n.getsockname()
def table():
    return sorted(int(n) for n in os.listdir("/proc/self/fd"))[:-1]
def change():
    os.close(n.fileno())
def check():
    assert n.getsockname() == name
    n.send(struct.pack("IHHIIB3x", 20, 18, 0x301, 1, 0, 0))
    n.settimeout(5)
    while struct.unpack_from("H", n.recv(65536), 4)[0] != 3:
        pass
    n.settimeout(None)
steps(change, check)
"#,
    )
    .round_trip_changing_inodes();
}

#[test]
fn sockets_of_other_families_are_refused() {
    let mut target = Target::start(
        r#"
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
steps(lambda: None, lambda: None)
"#,
    );
    target.expect("ready");
    let text = target.refusals();
    assert!(text.contains("only unix, TCP, UDP and netlink"), "{text}");
}
