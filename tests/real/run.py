#!/usr/bin/env python3
"""Real programs in a sandbox, each doing work before, across and after rollbacks, with its own state checked.

Usage: run.py [--list] [NAME]... Programs the machine has not are taken from REAL_EXTRAS (see fetch.sh), or skipped
by name. Exit status 1 when a program that ran did not come out right.
"""

import fnmatch
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "e2e/driver"), str(HERE)]

from dbx import Deltabox, Ended, Failed, Timeout, scratch  # noqa: E402
import selftest  # noqa: E402

EXTRAS = pathlib.Path(os.environ.get("REAL_EXTRAS", "/nonexistent"))
TESTS = {}


class Absent(Exception):
    """The program is not on this machine."""


def real(fn):
    TESTS[fn.__name__] = fn
    return fn


def want(got, expected, what):
    if got != expected:
        raise AssertionError(f"{what}: {got!r}, not {expected!r}")


def want_in(part, whole, what):
    if part not in whole:
        raise AssertionError(f"{what}: {part!r} is not in {whole[-400:]!r}")


def needs(sandbox, *programs):
    for p in programs:
        if sandbox.run("sh", "-c", f"command -v {p}", check=False).returncode:
            raise Absent(p)


def extra(path):
    path = EXTRAS / path
    if not path.exists():
        raise Absent(f"{path.name} (fetch.sh gets it)")
    return path


def python_package(sandbox, name):
    """Where a package is to be imported from: the machine's own, or the one that was fetched."""
    if sandbox.run("/usr/bin/python3", "-c", f"import {name}", check=False).returncode == 0:
        return ""
    sandbox.put([extra("site")], "/extras")
    return "/extras/site"


def script(sandbox, name, text):
    sandbox.run("sh", "-c", f"mkdir -p /app && cat > /app/{name}", input=text)
    return f"/app/{name}"


def kill_all_but(sandbox, *pids):
    """Kills every process whose id is not given (the command's shell), for a rollback that must make them anew."""
    sandbox.run("/app/kill_all_but", *[str(p) for p in pids])


def under_shell(sandbox, command, tty=False):
    """A conversation with `command` under a shell that survives the killing of it; the shell's process id."""
    talk = sandbox.talk("sh", "-c", f"echo SHELL $$ .; {command}; echo ENDED $?; read x < /app/never", tty=tty)
    pid = talk.until(" .").split("SHELL ")[1].split()[0]
    return talk, pid


# ---- shells and interpreters --------------------------------------------------------------------------------


@real
def bash_jobs(sandbox):
    """bash on a terminal: variables, background jobs, wait, a stopped job, history of what is running"""
    talk = sandbox.talk("bash", "--norc", "--noprofile", "-i", tty=True)
    talk.send("PS1='rea''dy> '\n")
    talk.until("ready> "), talk.drain()

    def cmd(line, timeout=20):
        talk.send(line + "\n")
        return talk.until("ready> ", timeout)

    cmd("x=before; mkdir -p /b; cd /b; f() { echo \"f:$1:$x\"; }")
    cmd("sleep 1000 &"), cmd("first=$!")
    cmd("(read l < /b/go; exit 7) & second=$!"), cmd("mkfifo go2")
    a = sandbox.checkpoint()
    for round in range(3):
        cmd("x=after; kill %1; rm -rf /b/*; cd /; unset -f f; sleep 999 &")
        sandbox.rollback(a)
        talk.drain()
        want_in("f:arg:before", cmd("f arg"), "the function and the variable")
        want_in("/b", cmd("pwd"), "the directory")
        jobs = cmd("jobs -l")
        want_in("sleep 1000", jobs, "the first job")
        want("sleep 999" in jobs, False, "a job of the branch that was left")
    # a job started before the checkpoint ends after it, and is waited for
    cmd("(sleep 1; exit 9) & third=$!")
    b = sandbox.checkpoint()
    want_in("status:9", cmd("wait $third; echo status:$?"), "wait")
    sandbox.rollback(b), talk.drain()
    want_in("status:9", cmd("wait $third; echo status:$?"), "wait after the rollback")
    # job control: stop, continue
    talk.send("cat > /b/out\n")
    time.sleep(0.3)
    talk.send("typed\n")
    time.sleep(0.3)  # a terminal forgets its input at the stop character
    talk.send("\x1a")
    talk.until("ready> ")
    want_in("Stopped", cmd("jobs"), "the stopped job")
    c = sandbox.checkpoint()
    cmd("kill -9 %cat %4 %3 2>/dev/null; wait 2>/dev/null & true")
    sandbox.rollback(c), talk.drain()
    want_in("Stopped", cmd("jobs"), "the stopped job after the rollback")
    talk.send("fg %cat\n")
    time.sleep(0.3)
    talk.send("more\n\x04")
    talk.until("ready> ")
    want(sandbox.read("/b/out"), "typed\nmore\n", "what the stopped job wrote")


@real
def sh_pipeline(sandbox):
    """a loop of pipelines in sh, killed and made anew"""
    talk, shell = under_shell(sandbox, "sh -c 'n=0; while read x; do n=$((n+x)); echo $n | cat | sed s/^/sum=/; done'")
    want_in("sum=5", talk.ask("5\n", "sum=5"), "the sum")
    a = sandbox.checkpoint()
    want_in("sum=12", talk.ask("7\n", "sum=12"), "the sum")
    sandbox.rollback(a)
    want_in("sum=6", talk.ask("1\n", "sum=6"), "the sum after the rollback")
    kill_all_but(sandbox, shell)
    sandbox.rollback(a)
    want_in("sum=105", talk.ask("100\n", "sum=105"), "the sum after being killed")


PYTHON_SETUP = """
import threading, time, os, random, queue
box = {'n': 0}; q = queue.Queue(); log = open('/py.log', 'w+', buffering=1)
def count():
    while True: box['n'] += 1; time.sleep(0.001)
def serve():
    while True: k, out = q.get(); out.append(k * 2)

for t in (count, serve): threading.Thread(target=t, daemon=True).start()

data = list(range(100000)); random.seed(42); gen = (x * x for x in range(10**9)); [next(gen) for _ in range(5)]
"""


def python_repl(sandbox, python_path=""):
    talk, shell = under_shell(sandbox, f"PYTHONPATH={python_path} /usr/bin/python3 -q -i", tty=True)
    talk.until(">>> ")

    def cmd(line, timeout=30):
        talk.send(line + "\n")
        return talk.until(">>> ", timeout)

    script(sandbox, "setup.py", PYTHON_SETUP)
    cmd("exec(open('/app/setup.py').read())")
    return talk, shell, cmd


@real
def python_threads(sandbox):
    """the CPython REPL on a terminal with threads, generators, an open file"""
    talk, shell, cmd = python_repl(sandbox)
    cmd("log.write('one\\n'); r = [random.random() for _ in range(3)]; state = random.getstate()")
    a = sandbox.checkpoint()
    expected = cmd("print('next', next(gen), random.random())").split("next ")[-1].split("\r")[0]
    for round in range(5):
        cmd("data.clear(); log.write('two\\n'); box['n'] = -10**9; import json, decimal")
        if round == 3:
            kill_all_but(sandbox, shell)
        sandbox.rollback(a)
        talk.drain()
        got = cmd("print('next', next(gen), random.random())").split("next ")[-1].split("\r")[0]
        want(got, expected, "the generator and the random numbers go on as they did")
        want_in("sum 4999950000", cmd("print('sum', sum(data))"), "the list")
        want_in("alive 3", cmd("print('alive', threading.active_count())"), "the threads")
        want_in("[246]", cmd("o = []; q.put((123, o)); time.sleep(.2); print(o)"), "the thread behind the queue")
        want_in("True", cmd("b = box['n']; time.sleep(.2); print(box['n'] > b)"), "the counting thread goes on")
        want_in("one|", cmd("log.flush(); print(open('/py.log').read().replace(chr(10), '|'))"), "the log")
        want(sandbox.read("/py.log"), "one\n", "the log from outside")


@real
def python_numpy(sandbox):
    """CPython with numpy: large arrays, changed in part"""
    talk, shell, cmd = python_repl(sandbox, python_package(sandbox, "numpy"))
    want("Error" in cmd("import numpy as np; rng = np.random.default_rng(1); m = rng.random((1500, 1500))"), False, "numpy")
    sums = cmd("print('sum', m.sum(), (m @ m).trace())").split("sum ")[-1].split("\r")[0]
    a = sandbox.checkpoint()
    drawn = cmd("print('drawn', rng.random())").split("drawn ")[-1].split("\r")[0]
    for round in range(3):
        cmd("m *= 2; n = rng.random((1000, 1000)); del m")
        if round == 2:
            kill_all_but(sandbox, shell)
        sandbox.rollback(a), talk.drain()
        want(cmd("print('drawn', rng.random())").split("drawn ")[-1].split("\r")[0], drawn, "the random numbers")
        want(cmd("print('sum', m.sum(), (m @ m).trace())").split("sum ")[-1].split("\r")[0], sums, "the matrix")


PYTHON_SERVER = """
import http.server, multiprocessing, mmap, os, socket, struct, sys, threading
shared = mmap.mmap(-1, 4096)
lock = multiprocessing.Lock()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        with lock:
            n = struct.unpack('q', shared[:8])[0] + 1
            shared[:8] = struct.pack('q', n)
        body = f'{n} {os.getpid()}'.encode()
        self.send_response(200); self.send_header('Content-Length', str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *a): pass
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(('127.0.0.1', 8123)); s.listen(50)
class Server(http.server.ThreadingHTTPServer):
    def __init__(self): super().__init__(('127.0.0.1', 0), Handler); self.socket.close(); self.socket = s
def work(): Server().serve_forever()
kids = [multiprocessing.Process(target=work) for _ in range(3)]
for k in kids: k.start()
print('UP', *[k.pid for k in kids], flush=True)
for k in kids: k.join()
"""
PYTHON_CLIENT = """
import http.client, sys
c = http.client.HTTPConnection('127.0.0.1', 8123, timeout=10)
for line in sys.stdin:
    c.request('GET', '/'); r = c.getresponse(); print('GOT', r.read().decode(), flush=True)
"""


@real
def python_server(sandbox):
    """a server of several processes with threads, and a client with a connection kept open across rollbacks"""
    server, shell = under_shell(sandbox, f"/usr/bin/python3 {script(sandbox, 'server.py', PYTHON_SERVER)}")
    server.until("UP"), server.line()
    client = sandbox.talk("/usr/bin/python3", script(sandbox, "client.py", PYTHON_CLIENT))

    def get():
        client.send("\n")
        return client.line_matching(lambda l: l.startswith("GOT")).split()[1:]

    first, worker = get()
    want(first, "1", "the first answer")
    get()
    a = sandbox.checkpoint()
    for round in range(5):
        for k in range(4):
            want(get(), [str(3 + k), worker], "the count, on the kept connection")
        sandbox.sh("curl -s http://127.0.0.1:8123/ > /dev/null", check=False)
        sandbox.rollback(a)
    want(get(), ["3", worker], "the count after the rollbacks, on the kept connection")
    answers = sandbox.sh("for i in 1 2 3 4 5 6; do curl -s -m 10 http://127.0.0.1:8123/; echo; done").split()
    want(answers[::2], [str(n) for n in range(4, 10)], "the count, on new connections")


NODE = """
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
if (isMainThread) {
  const shared = new SharedArrayBuffer(8); const view = new Int32Array(shared);
  const worker = new Worker(__filename, { workerData: shared });
  let map = new Map(); for (let i = 0; i < 50000; i++) map.set('key' + i, { i, text: 'x'.repeat(i % 50) });
  let ticks = 0; setInterval(() => ticks++, 5);
  const waiting = [];
  worker.on('message', m => waiting.shift()(m));
  const fib = n => n < 2 ? n : fib(n - 1) + fib(n - 2);
  require('readline').createInterface({ input: process.stdin }).on('line', async line => {
    const [cmd, arg] = line.split(' ');
    if (cmd === 'set') { map.set(arg, { i: -1, text: '' }); console.log('SET', map.size); }
    if (cmd === 'size') console.log('SIZE', map.size, [...map.values()].reduce((s, v) => s + v.text.length, 0));
    if (cmd === 'fib') console.log('FIB', fib(+arg));
    if (cmd === 'work') { const r = await new Promise(ok => { waiting.push(ok); worker.postMessage(+arg); }); console.log('WORK', r, Atomics.load(view, 0)); }
    if (cmd === 'ticks') { const t = ticks; setTimeout(() => console.log('TICKS', ticks > t), 100); }
  });
  console.log('UP');
} else {
  const view = new Int32Array(workerData); let total = 0;
  parentPort.on('message', n => { for (let i = 0; i < n; i++) total += i; Atomics.add(view, 0, 1); parentPort.postMessage(total); });
}
"""


@real
def node_worker(sandbox):
    """node with a worker thread, timers, compiled code and shared memory"""
    needs(sandbox, "node")
    talk, shell = under_shell(sandbox, f"node {script(sandbox, 'app.js', NODE)}")
    talk.until("UP\n")

    def cmd(line):
        talk.send(line + "\n")
        return talk.line_matching(lambda l: l.split(" ")[0] == line.split(" ")[0].upper(), 30)

    cmd("fib 27")
    want(cmd("work 1000"), "WORK 499500 1", "the worker")
    size = cmd("size")
    a = sandbox.checkpoint()
    for round in range(4):
        want(cmd("set more" + str(round)), "SET 50001", "the map, changed")
        want(cmd("work 10"), "WORK 499545 2", "the worker's own state, going on")
        cmd("fib 29")
        if round == 2:
            kill_all_but(sandbox, shell)
        sandbox.rollback(a)
        want(cmd("size"), size, "the map")
    want(cmd("work 10"), "WORK 499545 2", "the worker's own state")
    want(cmd("ticks"), "TICKS true", "the timers")


# ---- databases ----------------------------------------------------------------------------------------------

SQLITE = """
import sqlite3, sys
c = sqlite3.connect('/data.db', isolation_level=None)
c.execute('pragma journal_mode=wal'); c.execute('pragma wal_autocheckpoint=50')
c.execute('create table t (id integer primary key, v text)')
print('UP', flush=True)
for line in sys.stdin:
    try:
        rows = c.execute(line).fetchall()
        print('ROWS', rows, flush=True)
    except Exception as e: print('ROWS error', e, flush=True)
"""


@real
def sqlite_wal(sandbox):
    """sqlite in WAL mode held open, with a transaction open across the rollback, beside a second reader"""
    talk, shell = under_shell(sandbox, f"/usr/bin/python3 {script(sandbox, 'db.py', SQLITE)}")
    talk.until("UP\n")

    def sql(text):
        talk.send(text + "\n")
        return talk.line_matching(lambda l: l.startswith("ROWS"))[5:]

    for i in range(60):
        sql(f"insert into t (v) values ('{'x' * 500}{i}')")
    sql("begin"), sql("insert into t (v) values ('open')")
    a = sandbox.checkpoint()
    for round in range(4):
        sql("insert into t (v) values ('later')"), sql("commit")
        for i in range(60):
            sql(f"update t set v = '{round}{i}' where id = {i}")
        sql("pragma wal_checkpoint(truncate)")
        want(sql("select count(*) from t"), "[(62,)]", "rows in the branch")
        if round == 2:
            kill_all_but(sandbox, shell)
        sandbox.rollback(a)
        want(sql("select count(*), max(length(v)) from t"), "[(61, 502)]", "rows after the rollback")
    want(sql("rollback"), "[]", "the open transaction")
    want(sql("select count(*) from t"), "[(60,)]", "rows after the transaction was undone")
    want(sql("insert into t (v) values ('last')"), "[]", "a new row")
    other = "import sqlite3; c = sqlite3.connect('/data.db'); print(c.execute('pragma integrity_check').fetchall(), c.execute('select count(*) from t').fetchall())"
    want(sandbox.run("/usr/bin/python3", "-c", other).stdout, "[('ok',)] [(61,)]\n", "seen by another process")


@real
def postgres(sandbox):
    """PostgreSQL with a session and a transaction open"""
    needs(sandbox, "postgres", "initdb", "psql")
    user = "postgres" if sandbox.run("id", "postgres", check=False).returncode == 0 else "nobody"
    sandbox.sh(f"mkdir -p /pg && chown {user} /pg")
    run = f"setpriv --reuid={user} --regid=$(id -g {user}) --clear-groups"
    pg = "PATH=$(ls -d /usr/lib/postgresql/*/bin | tail -1):$PATH"
    sandbox.sh(f"{pg}; {run} initdb -D /pg/data -A trust -U postgres --no-sync > /pg.log 2>&1", timeout=180)
    server, shell = under_shell(sandbox, f"{pg}; {run} postgres -D /pg/data -k /pg -c fsync=off 2>&1")
    server.until("ready to accept connections", 60)
    session = sandbox.talk("sh", "-c", f"{pg}; exec psql -h /pg -U postgres -At -q")

    def sql(text, timeout=30):
        session.send(text + ";\n\\echo .\n")
        return session.until(".\n", timeout)[:-2].strip()

    sql("create table t (id serial primary key, v text)")
    sql("insert into t (v) select md5(i::text) from generate_series(1, 5000) i")
    digest = sql("select md5(string_agg(v, ',' order by id)) from t")
    sql("begin"), sql("update t set v = 'open' where id <= 10")
    a = sandbox.checkpoint()
    for round in range(3):
        sql("update t set v = 'lost'"), sql("commit"), sql("vacuum full t")
        want(sql("select count(*) from t where v = 'lost'"), "5000", "rows in the branch")
        sandbox.rollback(a)
        want(sql("select count(*) from t where v = 'open'"), "10", "the open transaction")
    want(sql("rollback; select md5(string_agg(v, ',' order by id)) from t"), digest, "the rows")
    fresh = sandbox.sh(f"{pg}; psql -h /pg -U postgres -At -c \"insert into t (v) values ('new'); select count(*) from t\"")
    want(fresh.split()[-1], "5001", "seen by a new session")


@real
def redis(sandbox):
    """redis (jemalloc) with data, a connection, keys that expire, and its background save"""
    lib, bin = "", ""
    if sandbox.run("sh", "-c", "command -v redis-server redis-cli", check=False).returncode:
        root = extra("root")
        sandbox.run("sh", "-c", "mkdir -p /redis && tar -x -C /redis", input=subprocess.run(
            ["tar", "-c", "-C", str(root), "usr/bin", "usr/lib/x86_64-linux-gnu"], capture_output=True, check=True).stdout)
        lib, bin = "LD_LIBRARY_PATH=/redis/usr/lib/x86_64-linux-gnu", "/redis/usr/bin/"
    if sandbox.run("sh", "-c", f"{lib} {bin}redis-server --version", check=False).returncode:
        raise Absent("libraries of redis")
    sandbox.sh("mkdir -p /redis")
    options = "--port 6399 --save '' --dir /redis --enable-debug-command yes"
    server, shell = under_shell(sandbox, f"cd /redis; {lib} {bin}redis-server {options}")
    server.until("Ready to accept connections")
    cli = sandbox.talk("sh", "-c", f"{lib} exec {bin}redis-cli -p 6399")

    def cmd(line):
        cli.send(line + "\nECHO __end__\n")
        return cli.until("__end__", 30).replace('"__end__', "").replace("__end__", "").strip().strip('"')

    cmd("DEBUG POPULATE 20000 key 100"), cmd("SET counter 5"), cmd("SET short x EX 100000")
    a = sandbox.checkpoint()
    for round in range(4):
        want(cmd("INCR counter").replace("(integer) ", ""), "6", "the counter, going on")
        cmd("FLUSHALL"), cmd("DEBUG POPULATE 5000 other 500"), cmd("BGSAVE")
        if round == 2:
            kill_all_but(sandbox, shell)
            sandbox.rollback(a)
            break
        sandbox.rollback(a)
        want(cmd("DBSIZE").replace("(integer) ", ""), "20002", "the number of keys")
    fresh = f"{lib} {bin}redis-cli -p 6399"
    want(sandbox.sh(f"{fresh} DBSIZE").split()[-1], "20002", "the number of keys, seen by a new client")
    want(sandbox.sh(f"{fresh} INCR counter").split()[-1], "6", "the counter")


# ---- tools in the middle of their work ----------------------------------------------------------------------


@real
def git(sandbox):
    """git: commits and a repack caught in the middle"""
    needs(sandbox, "git")
    sandbox.sh("mkdir /repo && cd /repo && git init -q . && git config user.email a@b && git config user.name n && "
               "for i in $(seq 1 60); do seq $i 400 > f$i; done && git add . && git commit -qm first")
    talk, shell = under_shell(sandbox, "cd /repo; for i in $(seq 1 25); do echo $i >> f$i; git commit -qam c$i; "
                                       "if [ $((i % 8)) = 0 ]; then git repack -adq; fi; echo DID $i; done")
    talk.line_matching(lambda l: l == "DID 6")
    a = sandbox.checkpoint()
    talk.line_matching(lambda l: l == "DID 14", 60)
    sandbox.rollback(a)
    talk.line_matching(lambda l: l == "DID 9", 60)
    b = sandbox.checkpoint()
    talk.line_matching(lambda l: l.startswith("ENDED"), 120)
    want(sandbox.sh("cd /repo; git rev-list --count HEAD").strip(), "26", "commits, at the end")
    sandbox.rollback(b)
    talk.line_matching(lambda l: l.startswith("ENDED 0"), 120)
    want(sandbox.sh("cd /repo; git fsck --strict 2>&1; git status --short; git rev-list --count HEAD").strip(), "26", "the repository")


PYTEST = """
import time, pytest, tempfile, threading
@pytest.fixture(scope='session')
def place(tmp_path_factory): return tmp_path_factory.mktemp('x')
@pytest.mark.parametrize('i', range(30))
def test_some(i, place):
    (place / f'f{i}').write_text('x' * i); time.sleep(0.05)
    assert len(list(place.iterdir())) == i + 1
"""


@real
def pytest(sandbox):
    """pytest in mid-run"""
    script(sandbox, "test_x.py", PYTEST)
    site = python_package(sandbox, "pytest")
    talk, shell = under_shell(sandbox, f"cd /app; PYTHONPATH={site} /usr/bin/python3 -m pytest -v -p no:cacheprovider test_x.py 2>&1")
    talk.until("test_some[7] PASSED", 60)
    a = sandbox.checkpoint()
    talk.until("test_some[15] PASSED", 60)
    sandbox.rollback(a)
    talk.until("test_some[20] PASSED", 60)
    kill_all_but(sandbox, shell)
    sandbox.rollback(a)
    talk.until("30 passed", 60)
    want(talk.line_matching(lambda l: l.startswith("ENDED")), "ENDED 0", "the result of the run")


@real
def make_j(sandbox):
    """a C build under make -j, caught in the middle and rolled back several times"""
    needs(sandbox, "make", "gcc")
    body = "\\n".join(f"int f%d_{k}(int x) {{ int s = 0; for (int i = 0; i < x; i++) s += i * {k} ^ x; return s; }}" for k in range(40))
    sandbox.sh("mkdir /build && cd /build && for i in $(seq 1 40); do printf '" + body.replace("%d", "'$i'") + "\\nint g'$i'(void) { return f'$i'_3(10); }\\n' > m$i.c; done; "
               "{ for i in $(seq 1 40); do echo \"int g$i(void);\"; done; echo 'int main(void) { int s = 0;'; for i in $(seq 1 40); do echo \"s += g$i();\"; done; echo 'return s != 40 * g1(); }'; } > main.c; "
               "printf 'OBJ = $(patsubst %%.c,%%.o,$(wildcard *.c))\\nprog: $(OBJ)\\n\\tgcc -o $@ $^\\n%%.o: %%.c\\n\\tgcc -O2 -c $< -o $@\\n' > Makefile")
    talk, shell = under_shell(sandbox, "cd /build; make -j3 2>&1")
    seen = 0
    while seen < 10:
        talk.line_matching(lambda l: "-c" in l, 60)
        seen += 1
    a = sandbox.checkpoint()
    for round in range(3):
        for _ in range(8):
            talk.line_matching(lambda l: "-c" in l, 60)
        if round == 1:
            kill_all_but(sandbox, shell)
        sandbox.rollback(a)
    want(talk.line_matching(lambda l: l.startswith("ENDED 0") or l.startswith("ENDED 2"), 120), "ENDED 0", "the build")
    want(sandbox.run("/build/prog").returncode, 0, "the program that was built")
    want_in("up to date", sandbox.sh("cd /build; make 2>&1"), "a second build has nothing to do")


# ---- programs on a terminal ---------------------------------------------------------------------------------


@real
def vim(sandbox):
    """vim on a terminal: text, undo, registers"""
    needs(sandbox, "vim")
    sandbox.sh("printf 'alpha\\nbeta\\n' > /text")
    talk = sandbox.talk("vim", "-u", "NONE", "-N", "/text", tty=True)
    time.sleep(1)
    talk.send("Ogamma\x1b\"aywyy")
    time.sleep(0.5)
    a = sandbox.checkpoint()
    for round in range(3):
        talk.send("ggdG:w!\r")
        time.sleep(0.5)
        sandbox.rollback(a)
        time.sleep(0.2)
    talk.send("p:w! /copy\r")
    time.sleep(0.5)
    want(sandbox.read("/copy"), "gamma\ngamma\nalpha\nbeta\n", "the text, with the line yanked before")
    want(sandbox.read("/text"), "alpha\nbeta\n", "the file")
    talk.send("uu:w! /undone\r:qa!\r")
    want(talk.wait(), 0, "the exit code")
    want(sandbox.read("/undone"), "alpha\nbeta\n", "the text after undo")


@real
def less(sandbox):
    """less on a terminal, in the middle of a file"""
    needs(sandbox, "less")
    sandbox.sh("seq 1 5000 > /numbers")
    talk = sandbox.talk("less", "/numbers", tty=True)
    talk.until("/numbers")
    talk.send("2000g")
    talk.until("2000")
    time.sleep(0.3)
    a = sandbox.checkpoint()
    talk.send("4000g")
    talk.until("4000")
    sandbox.rollback(a)
    talk.drain()
    talk.send("\x0c")  # draw again
    want_in("2000", talk.until("2022"), "the place in the file")
    talk.send("q")
    want(talk.wait(), 0, "the exit code")


@real
def tmux(sandbox):
    """tmux: a server with two windows, and a client attached"""
    needs(sandbox, "tmux")
    sandbox.sh("TERM=vt100 tmux -L t -f /dev/null new-session -d -x 80 -y 24 'sh'; tmux -L t new-window 'sh'; sleep 0.5; "
               "tmux -L t send-keys -t 0:0 'echo first-$((6*7))' Enter; tmux -L t send-keys -t 0:1 'x=kept' Enter; sleep 0.5")
    client = sandbox.talk("tmux", "-L", "t", "attach", tty=True)
    time.sleep(0.5)
    a = sandbox.checkpoint()
    for round in range(3):
        sandbox.sh("tmux -L t send-keys -t 0:1 'x=lost' Enter; tmux -L t kill-window -t 0:0; tmux -L t new-window sh; sleep 0.2")
        if round == 2:
            sandbox.sh("tmux -L t kill-server; sleep 0.2")
        sandbox.rollback(a)
        want_in("first-42", sandbox.sh("tmux -L t capture-pane -p -t 0:0"), "the first window")
    sandbox.sh("tmux -L t send-keys -t 0:1 'echo it-is-$x' Enter; sleep 0.5")
    want_in("it-is-kept", sandbox.sh("tmux -L t capture-pane -p -t 0:1"), "the second window's shell")
    want(len(sandbox.sh("tmux -L t list-windows").split("\n")), 3, "the number of windows (and an empty line)")
    client.drain()


# ---- other runtimes -----------------------------------------------------------------------------------------

JAVA = """
import java.util.*; import java.util.concurrent.*; import java.util.concurrent.atomic.*;
public class App {
  public static void main(String[] a) throws Exception {
    Map<String, Integer> map = new ConcurrentHashMap<>(); for (int i = 0; i < 100000; i++) map.put("k" + i, i);
    AtomicLong ticks = new AtomicLong();
    ScheduledExecutorService timer = Executors.newScheduledThreadPool(2);
    timer.scheduleAtFixedRate(ticks::incrementAndGet, 5, 5, TimeUnit.MILLISECONDS);
    ExecutorService pool = Executors.newFixedThreadPool(4);
    Random random = new Random(7);
    System.out.println("UP");
    Scanner in = new Scanner(System.in);
    while (in.hasNextLine()) {
      String[] w = in.nextLine().split(" ");
      if (w[0].equals("put")) { map.put(w[1], -1); System.out.println("PUT " + map.size()); }
      if (w[0].equals("sum")) { long s = 0; for (int v : map.values()) s += v; System.out.println("SUM " + map.size() + " " + s); }
      if (w[0].equals("random")) System.out.println("RANDOM " + random.nextInt());
      if (w[0].equals("garbage")) { for (int i = 0; i < 200; i++) { byte[] b = new byte[1 << 20]; b[i] = 1; } System.gc(); System.out.println("GARBAGE"); }
      if (w[0].equals("pool")) { List<Future<Long>> f = new ArrayList<>(); for (int k = 0; k < 8; k++) { final int n = k; f.add(pool.submit(() -> { long s = 0; for (int i = 0; i < 1000000; i++) s += i % (n + 1); return s; })); } long s = 0; for (Future<Long> x : f) s += x.get(); System.out.println("POOL " + s); }
      if (w[0].equals("ticks")) { long t = ticks.get(); Thread.sleep(100); System.out.println("TICKS " + (ticks.get() > t)); }
    }
  }
}
"""


@real
def java(sandbox):
    """a JVM with threads, timers, compiled code and garbage collection"""
    needs(sandbox, "java", "javac")
    sandbox.sh(f"cd /app 2>/dev/null || mkdir /app; cd /app; cat > App.java; javac App.java", input=JAVA, timeout=120)
    talk, shell = under_shell(sandbox, "cd /app; java -Xmx256m App")
    talk.until("UP\n", 60)

    def cmd(line):
        talk.send(line + "\n")
        return talk.line_matching(lambda l: l.split(" ")[0] == line.split(" ")[0].upper(), 60)

    pool = cmd("pool")
    total = cmd("sum")
    cmd("random"), cmd("garbage")
    a = sandbox.checkpoint()
    drawn = cmd("random")
    for round in range(3):
        want(cmd("put x"), "PUT 100001", "the map, changed")
        cmd("garbage")
        if round == 1:
            kill_all_but(sandbox, shell)
        sandbox.rollback(a)
        want(cmd("sum"), total, "the map")
        want(cmd("random"), drawn, "the random numbers")
        want(cmd("pool"), pool, "the thread pool")
    cmd("garbage")
    want(cmd("ticks"), "TICKS true", "the timers")


GO = """
package main
import ("bufio"; "fmt"; "os"; "runtime"; "strings"; "sync/atomic"; "time")
func main() {
  m := map[string]int{}; for i := 0; i < 100000; i++ { m[fmt.Sprint("k", i)] = i }
  var ticks int64; go func() { for range time.Tick(5 * time.Millisecond) { atomic.AddInt64(&ticks, 1) } }()
  ask, tell := make(chan int), make(chan int); total := 0
  for k := 0; k < 8; k++ { go func() { for n := range ask { s := 0; for i := 0; i < n; i++ { s += i }; tell <- s } }() }
  fmt.Println("UP")
  in := bufio.NewScanner(os.Stdin)
  for in.Scan() {
    w := strings.Fields(in.Text())
    switch w[0] {
    case "put": m[w[1]] = -1; fmt.Println("PUT", len(m))
    case "sum": s := 0; for _, v := range m { s += v }; fmt.Println("SUM", len(m), s)
    case "work": for k := 0; k < 8; k++ { go func() { ask <- 1000 }() }; for k := 0; k < 8; k++ { total += <-tell }; fmt.Println("WORK", total)
    case "garbage": for i := 0; i < 100; i++ { b := make([]byte, 1<<20); b[i] = 1 }; runtime.GC(); fmt.Println("GARBAGE")
    case "ticks": t := atomic.LoadInt64(&ticks); time.Sleep(100 * time.Millisecond); fmt.Println("TICKS", atomic.LoadInt64(&ticks) > t)
    }
  }
}
"""


@real
def go(sandbox):
    """a Go program: goroutines, channels, timers, garbage collection"""
    goroot = extra("root/usr/lib/go-1.19")
    with tempfile.TemporaryDirectory() as d:
        pathlib.Path(d, "app.go").write_text(GO)
        env = dict(os.environ, GOROOT=str(goroot), GOCACHE=d + "/cache", GO111MODULE="off", GOPATH=d + "/path", CGO_ENABLED="0")
        src = EXTRAS / "root/usr/share/go-1.19"
        if not (goroot / "src").exists() or not (goroot / "src" / "runtime").exists():
            env["GOROOT"] = d + "/root"  # the package links to absolute paths
            os.makedirs(d + "/root")
            for part in ("bin", "pkg"):
                os.symlink(goroot / part, f"{d}/root/{part}") if (goroot / part).is_dir() else None
            for part in ("src", "api", "misc", "test"):
                if (src / part).exists():
                    os.symlink(src / part, f"{d}/root/{part}")
        r = subprocess.run([str(goroot / "bin/go"), "build", "-o", d + "/goapp", d + "/app.go"], env=env, capture_output=True, text=True, check=False)
        if r.returncode:
            raise Absent(f"a working Go compiler ({r.stderr.strip()[-200:]})")
        sandbox.put([pathlib.Path(d, "goapp")], "/app")
    talk, shell = under_shell(sandbox, "/app/goapp")
    talk.until("UP\n")

    def cmd(line):
        talk.send(line + "\n")
        return talk.line_matching(lambda l: l.split(" ")[0] == line.split(" ")[0].upper(), 30)

    total = cmd("sum")
    want(cmd("work"), "WORK 3996000", "the goroutines")
    a = sandbox.checkpoint()
    for round in range(4):
        want(cmd("put x"), "PUT 100001", "the map, changed")
        want(cmd("work"), "WORK 7992000", "the goroutines, going on")
        cmd("garbage")
        if round == 2:
            kill_all_but(sandbox, shell)
        sandbox.rollback(a)
        want(cmd("sum"), total, "the map")
    want(cmd("work"), "WORK 7992000", "the goroutines")
    want(cmd("ticks"), "TICKS true", "the timers")


def main():
    names = [n for n in TESTS if not sys.argv[1:] or any(fnmatch.fnmatch(n, p) for p in sys.argv[1:])]
    if sys.argv[1:] == ["--list"]:
        for n, f in TESTS.items():
            print(f"{n:16} {f.__doc__}")
        return 0
    tools = scratch("real")
    ok, text = selftest.build("tools/kill_all_but", tools)
    if not ok:
        sys.exit(text)
    box = Deltabox()
    failed, skipped = [], []
    for name in names:
        started = time.monotonic()
        sandbox = None
        try:
            sandbox = box.sandbox(f"real-{name.replace('_', '-')}")
            sandbox.put([tools / "kill_all_but"], "/app")
            sandbox.run("mkfifo", "/app/never")
            TESTS[name](sandbox)
            result, detail = "pass", ""
        except Absent as e:
            skipped.append(name)
            result, detail = "skip", f"not here: {e}"
        except (AssertionError, Failed, Timeout, Ended) as e:
            failed.append(name)
            line = next((f.lineno for f in reversed(traceback.extract_tb(e.__traceback__)) if f.filename == __file__ and f.name in TESTS), 0)
            result, detail = "FAIL", f"line {line}: {type(e).__name__}: {e}"
        print(f"{result:5} {name:16} {time.monotonic() - started:5.1f} s  {TESTS[name].__doc__}" + (f"\n      {detail}" if detail else ""), flush=True)
        if sandbox:
            try:
                sandbox.remove()
            except Timeout:
                print("      and the sandbox could not be removed")
    print(f"{len(names) - len(failed) - len(skipped)} of {len(names)} passed, {len(skipped)} skipped ({', '.join(skipped) or '-'}), {len(failed)} failed ({', '.join(failed) or '-'})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
