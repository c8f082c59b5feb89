"""Drives the real `deltabox` program as a user would: everything goes through its command line."""

import atexit
import json
import os
import pathlib
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time

TESTS = pathlib.Path(__file__).resolve().parents[2]
REPO = TESTS.parent
sys.path.insert(0, str(TESTS / "probes"))


class Failed(Exception):
    """A command of deltabox ended with an error."""

    def __init__(self, what, result):
        self.code = result.returncode
        self.text = (result.stderr or "").strip() or f"exit code {result.returncode}"
        super().__init__(f"{what}: {self.text}")


class Timeout(Exception):
    pass


class Ended(Exception):
    """The command at the other end is gone."""


def scratch(prefix):
    """A directory that goes with this program."""
    path = tempfile.mkdtemp(prefix=prefix)
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return pathlib.Path(path)


def find_binary():
    if path := os.environ.get("DELTABOX_BIN"):
        return pathlib.Path(path)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target"))
    found = [p for p in (target / "release/deltabox", target / "debug/deltabox") if p.exists()]
    if not found:
        sys.exit(f"no deltabox in {target}: build it, or set DELTABOX_BIN")
    return max(found, key=lambda p: p.stat().st_mtime)


class Deltabox:
    """A daemon with a state directory of its own, ended and removed with the test."""

    def __init__(self, keep=False):
        self.binary = str(find_binary())
        self.home = tempfile.mkdtemp(prefix="dbx", dir=os.environ.get("DELTABOX_TEST_DIR"))
        self.env = dict(os.environ, DELTABOX_HOME=self.home)
        self.keep = keep
        atexit.register(self.close)

    def close(self):
        if self.home is None:
            return
        subprocess.run([self.binary, "stop"], env=self.env, capture_output=True, timeout=60, check=False)
        if not self.keep:
            shutil.rmtree(self.home, ignore_errors=True)
        self.home = None

    def call(self, *args, input=None, timeout=60, check=True):
        try:
            r = subprocess.run([self.binary, *args], env=self.env, input=input, capture_output=True, timeout=timeout,
                               check=False, text=not isinstance(input, bytes))
        except subprocess.TimeoutExpired:
            raise Timeout(f"deltabox {' '.join(args[:3])} did not answer in {timeout} s") from None
        if check and r.returncode:
            if isinstance(r.stderr, bytes):
                r.stderr = r.stderr.decode(errors="replace")
            raise Failed(f"deltabox {' '.join(args[:2])}", r)
        return r

    def log(self):
        try:
            return pathlib.Path(self.home, "daemon.log").read_text(errors="replace")
        except (OSError, TypeError):
            return ""

    def sandbox(self, name, *options):
        return Sandbox(self, name, *options)


class Sandbox:
    def __init__(self, box, name, *options):
        self.box, self.name = box, name
        self.conversations = []
        box.call("create", "--name", name, *options)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.remove()

    def remove(self):
        for c in self.conversations:
            c.kill()
        self.conversations = []
        self.box.call("rm", "--force", self.name, check=False)

    def run(self, *argv, input=None, timeout=60, check=True, workdir=None):
        """Runs a command to its end; the result of subprocess.run."""
        flags = ["-i"] if input is not None else []
        if workdir:
            flags += ["--workdir", workdir]
        return self.box.call("exec", self.name, *flags, "--", *argv, input=input, timeout=timeout, check=check)

    def sh(self, script, **kw):
        return self.run("sh", "-c", script, **kw).stdout

    def detach(self, *argv):
        return self.box.call("exec", self.name, "-d", "--", *argv).stdout.strip()

    def talk(self, *argv, tty=False, workdir=None):
        """Starts a command with its input and output held open."""
        c = Conversation(self, argv, tty, workdir)
        self.conversations.append(c)
        return c

    def checkpoint(self, timeout=60):
        return json.loads(self.box.call("checkpoint", self.name, "--json", timeout=timeout).stdout)

    def rollback(self, to, timeout=60):
        return json.loads(self.box.call("rollback", self.name, to if isinstance(to, str) else to["id"], "--json",
                                        timeout=timeout).stdout)

    def fork(self, checkpoint=None):
        """A sandbox that goes on from a checkpoint, or from the live state."""
        name = f"{self.name}-{os.urandom(3).hex()}"
        options = ["--from", checkpoint["id"]] if checkpoint else []
        self.box.call("fork", self.name, "--name", name, *options)
        child = Sandbox.__new__(Sandbox)
        child.box, child.name, child.conversations = self.box, name, []
        return child

    def put(self, files, directory):
        """Copies host files into a directory of the sandbox, all at once."""
        tar = subprocess.run(["tar", "-c", *sum((["-C", str(p.parent), p.name] for p in files), [])],
                             capture_output=True, check=True).stdout
        self.run("sh", "-c", f"mkdir -p {directory} && tar -x -C {directory}", input=tar)

    def describe(self):
        """What every thread inside is doing, for the report of a failure."""
        try:
            return self.sh("for t in /proc/[0-9]*/task/*; do p=${t#/proc/}; [ ${p%%/*} = $$ ] && continue; "
                           "echo \"$p $(cat $t/comm) $(sed -n 's/^State:.//p' $t/status) in $(cat $t/wchan), "
                           "call $(cat $t/syscall) $(grep -hE '^(Sig(Q|Pnd|Blk)|ShdPnd)' $t/status | tr '\\n\\t' '  ')\"; done 2>/dev/null",
                           timeout=10)
        except (Failed, Timeout) as e:
            return f"cannot be described: {e}"

    def read(self, path):
        return self.run("cat", path, check=False).stdout


class Conversation:
    """A running `deltabox exec -i`, or with -t on a terminal of ours."""

    def __init__(self, sandbox, argv, tty, workdir):
        box = sandbox.box
        cmd = [box.binary, "exec", sandbox.name, "-i"] + (["-t"] if tty else [])
        if workdir:
            cmd += ["--workdir", workdir]
        cmd += ["--", *argv]
        self.master = None
        env = dict(box.env, TERM="vt100")
        if tty:
            import fcntl
            import struct
            import termios
            self.master, slave = os.openpty()
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
            self.p = subprocess.Popen(cmd, env=env, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
            os.close(slave)
            self.out = self.master
        else:
            self.p = subprocess.Popen(cmd, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      stderr=subprocess.PIPE)
            self.out = self.p.stdout.fileno()
            self.notes = []
            threading.Thread(target=self._collect_notes, daemon=True).start()
        self.bytes = queue.Queue()
        self.buffer = b""
        self.all = b""
        threading.Thread(target=self._collect, daemon=True).start()

    def _collect(self):
        while True:
            try:
                data = os.read(self.out, 65536)
            except OSError:
                data = b""
            self.bytes.put(data)
            if not data:
                return

    def _collect_notes(self):
        for line in self.p.stderr:
            self.notes.append(line.decode(errors="replace").rstrip())

    def send(self, text):
        data = text if isinstance(text, bytes) else text.encode()
        try:
            if self.master is not None:
                os.write(self.master, data)
            else:
                self.p.stdin.write(data)
                self.p.stdin.flush()
        except (BrokenPipeError, OSError) as e:
            raise Ended(f"cannot write to the command: {e}") from None

    def _more(self, deadline, what):
        left = deadline - time.monotonic()
        try:
            data = self.bytes.get(timeout=max(left, 0.001))
        except queue.Empty:
            raise Timeout(f"no {what}; so far {self.buffer[-300:]!r}") from None
        if not data:
            self.bytes.put(b"")
            raise Ended(f"the command ended while waiting for {what}; it said {self.all[-200:]!r}, "
                        f"and {getattr(self, 'notes', [])[-2:]}")
        self.buffer += data
        self.all += data

    def line(self, timeout=20):
        deadline = time.monotonic() + timeout
        while b"\n" not in self.buffer:
            self._more(deadline, "line")
        text, self.buffer = self.buffer.split(b"\n", 1)
        return text.decode(errors="replace").rstrip("\r")

    def line_matching(self, want, timeout=20):
        """The next line for which want(line) is true; others are passed over."""
        deadline = time.monotonic() + timeout
        while True:
            text = self.line(deadline - time.monotonic())
            if want(text):
                return text

    def until(self, text, timeout=20):
        """Everything up to and with `text`."""
        deadline, want = time.monotonic() + timeout, text.encode()
        while want not in self.buffer:
            self._more(deadline, repr(text))
        at = self.buffer.index(want) + len(want)
        got, self.buffer = self.buffer[:at], self.buffer[at:]
        return got.decode(errors="replace")

    def ask(self, text, prompt, timeout=20):
        self.send(text)
        return self.until(prompt, timeout)

    def drain(self):
        """Forgets what came so far."""
        time.sleep(0.05)
        try:
            while True:
                data = self.bytes.get_nowait()
                if not data:
                    self.bytes.put(b"")
                    break
                self.all += data
        except queue.Empty:
            pass
        self.buffer = b""

    def wait(self, timeout=20):
        try:
            return self.p.wait(timeout)
        except subprocess.TimeoutExpired:
            raise Timeout("the command does not end") from None

    def kill(self):
        if self.p.poll() is None:
            self.p.kill()
            self.p.wait()
        if self.master is not None:
            try:
                os.close(self.master)
            except OSError:
                pass
            self.master = None
