#!/usr/bin/env python3
"""Runs the probes under CRIU, for comparison and to prove the probes against another implementation.

Each probe runs in PID, mount, IPC and network namespaces of its own, and is talked to through files. CRIU does not
roll files back: the probe's directory is copied aside at the checkpoint and put back before the restore. Scenarios:
`go_on` (dump --leave-running, then check) and `rollback` (dump --leave-running, change everything, kill, restore,
check). CRIU is taken from the environment variable CRIU: a command, which may begin with a loader of its own:
CRIU="DIR/ld-linux-x86-64.so.2 --library-path DIR DIR/criu".

Usage: criu.py [--json FILE] [PROBE]...
"""

import collections
import concurrent.futures
import ctypes
import fnmatch
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "probes"))
import selftest  # noqa: E402

SCENARIOS = ("go_on", "rollback")
CLONE_NEWIPC = 0x08000000


class Problem(Exception):
    pass


def reap():
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def answer(place, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        reap()
        try:
            if text := (place / "out").read_text().strip():
                (place / "out").unlink()
                return text
        except FileNotFoundError:
            pass
        time.sleep(0.01)
    return "hang: no answer"


def command(place, letter):
    (place / "cmd.new").write_text(letter)
    (place / "cmd.new").rename(place / "cmd")
    return answer(place)


def criu(action, images, *args):
    common = ["-D", str(images), "-v2", "-o", f"{action}.log", "--tcp-established", "--file-locks", "--ext-unix-sk",
              "--ghost-limit", "200M", "--link-remap", "--manage-cgroups=ignore",
              "--network-lock", "skip"]
    r = subprocess.Popen([*shlex.split(os.environ["CRIU"]), action, *common, *args], stdout=subprocess.DEVNULL,
                         stderr=subprocess.DEVNULL)
    if r.wait(120):
        lines = [l for l in (images / f"{action}.log").read_text(errors="replace").splitlines() if "Error" in l and "RLIMIT_NOFILE" not in l]
        raise Problem(f"{action}: {(lines or ['?'])[0][:160]}")


def kill_others():
    for _ in range(200):
        living = [int(p) for p in os.listdir("/proc") if p.isdigit() and int(p) > 1]
        if not living:
            return
        for p in living:
            try:
                os.kill(p, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.005)
        reap()


def inside(exe, scenario):
    """As PID 1 of the namespaces."""
    selftest.loopback_up()
    base = pathlib.Path(tempfile.mkdtemp(prefix="criu"))
    place, images = base / "place", base / "images"
    place.mkdir(), images.mkdir()
    libc = ctypes.CDLL(None)

    def own():
        os.setsid()
        libc.unshare(CLONE_NEWIPC)

    try:
        p = subprocess.Popen([exe, "--dir", str(place)], cwd=place, stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=own)
        ready = answer(place)
        if ready != "READY":
            return ready
        criu("dump", images, "-t", str(p.pid), "--leave-running")
        if scenario == "go_on":
            return command(place, "c")
        subprocess.run(["cp", "-a", str(place), str(base / "aside")], check=False)  # files may come and go meanwhile
        command(place, "m")
        kill_others()
        subprocess.run(f"rm -rf '{place}'/* '{place}'/.[!.]*; cp -a '{base}/aside/.' '{place}/'", shell=True, check=True)
        criu("restore", images, "-d")
        return command(place, "c")
    except Problem as e:
        return f"refused: {e}"
    finally:
        kill_others()
        shutil.rmtree(base, ignore_errors=True)


def one(binaries, name, scenario):
    cmd = ["unshare", "--fork", "--pid", "--mount-proc", "--ipc", "--net", "--kill-child", sys.executable, __file__,
           "--inside", str(binaries / name), scenario]
    try:
        r = subprocess.run(cmd, capture_output=True, text=True, timeout=150, check=False)
    except subprocess.TimeoutExpired:
        return "hang: the driver"
    return r.stdout.strip().splitlines()[-1] if r.stdout.strip() else f"broken: {r.stderr.strip()[-200:]}"


def main():
    args = sys.argv[1:]
    if args[:1] == ["--inside"]:
        print(inside(args[1], args[2]))
        return 0
    output = None
    if args[:1] == ["--json"]:
        output, args = args[1], args[2:]
    if "CRIU" not in os.environ:
        sys.exit("set CRIU to the command that starts it")
    names = [n for n in selftest.names() if not args or any(fnmatch.fnmatch(n, a) for a in args)]
    binaries = pathlib.Path(os.environ.get("PROBE_BUILD_DIR", tempfile.gettempdir() + "/probes-build"))
    if errors := selftest.build_all(binaries, names):
        sys.exit("\n".join(errors.values()))
    table = {n: {} for n in names}
    with concurrent.futures.ThreadPoolExecutor(int(os.environ.get("PROBE_JOBS", "2"))) as pool:
        jobs = {(n, s): pool.submit(one, binaries, n, s) for n in names for s in SCENARIOS}
        for (n, s), job in jobs.items():
            table[n][s] = job.result()
            if table[n][s] != "PASS":
                print(f"{n:28} {s:9} {table[n][s][:220]}", flush=True)
    for s in SCENARIOS:
        count = collections.Counter(t[s].split(":")[0] for t in table.values())
        print(f"{s:9} " + ", ".join(f"{v} {k}" for k, v in count.most_common()))
    whole = sum(all(v == "PASS" for v in t.values()) for t in table.values())
    print(f"CRIU: {whole} of {len(table)} probes pass both")
    if output:
        pathlib.Path(output).write_text(json.dumps(table, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
