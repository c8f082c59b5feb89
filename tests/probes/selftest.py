#!/usr/bin/env python3
"""Builds every probe and proves, without any checkpoint, that its check can pass and that it can fail.

For each probe: `c` at once must PASS; `m` and then `c` must FAIL (or the probe says in one line why nothing can be
changed, and then `c` must still PASS). The whole runs in its own PID, IPC, network and mount namespaces, so that
nothing is left behind. Arguments: names of probes (default: all).
"""
import concurrent.futures
import fcntl
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
CFLAGS = ["-O1", "-g", "-std=gnu17", "-pthread", "-Wall", "-Wextra", "-Werror"]


def names():
    return sorted(p.stem for p in HERE.glob("*.c"))


def build(name, out):
    """Compiles aside and renames: several drivers share the directory, and none may run half a program."""
    exe = out / pathlib.Path(name).name
    aside = out / f".{exe.name}.{os.getpid()}"
    cmd = [os.environ.get("CC", "gcc"), *CFLAGS, str(HERE / f"{name}.c"), "-o", str(aside), "-lrt"]
    r = subprocess.run(cmd, capture_output=True, text=True)
    if r.returncode == 0:
        aside.rename(exe)
    else:
        aside.unlink(missing_ok=True)
    return r.returncode == 0, r.stderr


def build_all(out, which=None):
    """Compiles into `out`; returns the errors by name."""
    out.mkdir(parents=True, exist_ok=True)
    todo = []
    header = max(h.stat().st_mtime for h in HERE.glob("*.h"))
    for n in which or names():
        exe = out / n
        if not exe.exists() or exe.stat().st_mtime < max(header, (HERE / f"{n}.c").stat().st_mtime):
            todo.append(n)
    errors = {}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for n, (ok, err) in zip(todo, pool.map(lambda n: build(n, out), todo)):
            if not ok:
                errors[n] = err
    return errors


def run(exe, letters, workdir):
    """Exit status (None: it hangs) and the lines said."""
    with tempfile.TemporaryDirectory(dir=workdir) as d, tempfile.TemporaryFile("w+") as out:
        p = subprocess.Popen([str(exe), "--run", letters], cwd=d, stdout=out, stderr=subprocess.STDOUT,
                             stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            code = p.wait(60)
        except subprocess.TimeoutExpired:
            code = None
        try:
            os.killpg(p.pid, 9)
        except ProcessLookupError:
            pass
        p.wait()
        out.seek(0)
        return code, out.read().split("\n")[:-1]


def judge(name, out, workdir):
    """(verdict, detail): verdict is ok, noop, skip or bad."""
    code, said = run(out / name, "c", workdir)
    if code == 77:
        return "skip", said[-1]
    if code != 0 or said != ["PASS"]:
        return "bad", f"c at once: exit {code}, {said}"
    code, said = run(out / name, "mc", workdir)
    if len(said) == 2 and said[0].startswith("NOOP: ") and said[1] == "PASS" and code == 0:
        return "noop", said[0]
    if code == 1 and len(said) == 2 and said[0] == "OK" and said[1].startswith("FAIL: "):
        return "ok", said[1]
    return "bad", f"m then c: exit {code}, {said}"


def loopback_up():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        siocsifflags, iff_up = 0x8914, 1
        fcntl.ioctl(s, siocsifflags, struct.pack("16sh22x", b"lo", iff_up))


def main():
    if os.environ.get("PROBE_SELFTEST_INSIDE") != "1":
        os.environ["PROBE_SELFTEST_INSIDE"] = "1"
        os.execvp("unshare", ["unshare", "--fork", "--pid", "--mount-proc", "--ipc", "--net", "--kill-child",
                              sys.executable, __file__, *sys.argv[1:]])
    loopback_up()
    which = sys.argv[1:] or names()
    out = pathlib.Path(os.environ.get("PROBE_BUILD_DIR", tempfile.gettempdir() + "/probes-build"))
    errors = build_all(out, which)
    for n, e in errors.items():
        print(f"bad   {n:28} does not compile:\n{e}")
    workdir = tempfile.mkdtemp(prefix="probes-")
    counts = {"ok": 0, "noop": 0, "skip": 0, "bad": len(errors)}
    try:
        good = [n for n in which if n not in errors]
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            for n, (verdict, detail) in zip(good, pool.map(lambda n: judge(n, out, workdir), good)):
                counts[verdict] += 1
                if verdict != "ok" or len(which) < 20:
                    print(f"{verdict:5} {n:28} {detail}", flush=True)
    finally:
        shutil.rmtree(workdir, ignore_errors=True)
    print(f"{len(which)} probes: {counts['ok']} can pass and fail, {counts['noop']} cannot be changed (reason given), "
          f"{counts['skip']} not possible here, {counts['bad']} bad")
    sys.exit(1 if counts["bad"] else 0)


if __name__ == "__main__":
    main()
