from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from deltabox import (
    CommandFailed,
    CommandLost,
    Conflict,
    ForkFailed,
    NotFound,
    Retention,
    Sandbox,
    UsageError,
)


def test_a_command_has_an_exit_code_and_two_streams(sb: Sandbox) -> None:
    result = sb.run("echo out; echo err >&2; exit 3")
    assert (result.exit_code, result.stdout, result.stderr, result.ok) == (3, "out\n", "err\n", False)
    assert (result.signal, result.timed_out, result.rolled_back, result.discarded) == (None, False, (), False)


def test_a_list_is_not_interpreted_by_a_shell(sb: Sandbox) -> None:
    assert sb.run(["printf", "%s|", "a b", "$HOME", "*"]).stdout == "a b|$HOME|*|"
    with pytest.raises(UsageError):
        sb.run([])


def test_environment_and_working_directory(home: str) -> None:
    with Sandbox.create(env={"A": "1", "B": "2"}) as sb:
        assert sb.run("echo $A $B $C", env={"B": "3", "C": "x=y"}).stdout == "1 3 x=y\n"
        assert sb.run("pwd", workdir="/tmp").stdout == "/tmp\n"


@pytest.mark.parametrize("size", [0, 10, 300_000, 5_000_000])
def test_input_of_any_size_arrives_whole(sb: Sandbox, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert sb.run(["cat"], input=data).stdout_bytes == data


def test_a_command_that_does_not_read_its_input_is_no_error(sb: Sandbox) -> None:
    assert sb.run("exit 0", input=b"x" * 1_000_000).ok


def test_output_is_called_back_as_it_comes(sb: Sandbox) -> None:
    out: list[bytes] = []
    err: list[bytes] = []
    result = sb.run("echo a; echo b >&2", on_stdout=out.append, on_stderr=err.append)
    assert (b"".join(out), b"".join(err)) == (b"a\n", b"b\n")
    assert result.stdout == "a\n"


def test_output_that_is_not_text_is_kept_as_bytes(sb: Sandbox) -> None:
    result = sb.run(["printf", r"\377\0\342\200\250\n"])
    assert result.stdout_bytes == b"\xff\0\xe2\x80\xa8\n"
    assert result.stdout == "\ufffd\0\u2028\n"


def test_a_timeout_kills_and_is_told_apart(sb: Sandbox) -> None:
    result = sb.run("echo before; sleep 60", timeout=0.3)
    assert (result.exit_code, result.timed_out, result.stdout) == (124, True, "before\n")


def test_a_signal_is_told_apart(sb: Sandbox) -> None:
    result = sb.run("kill -TERM $$")
    assert (result.exit_code, result.signal) == (128 + signal.SIGTERM, signal.SIGTERM)


def test_check_raises_with_the_result(sb: Sandbox) -> None:
    with pytest.raises(CommandFailed, match="exit code 2: no luck") as caught:
        sb.run("echo no luck >&2; exit 2", check=True)
    assert caught.value.result.exit_code == 2
    assert sb.run("true", check=True).ok


def test_a_command_that_does_not_exist(sb: Sandbox) -> None:
    with pytest.raises(NotFound) as caught:
        sb.run(["no-such-command"])
    assert caught.value.exit_code == 127
    assert sb.run("no-such-command").exit_code == 127


def test_checkpoint_rollback_and_diff(sb: Sandbox) -> None:
    sb.run("echo one > note", check=True)
    first = sb.checkpoint("first", token="turn 1")
    sb.run("echo two > note; echo x > extra", check=True)
    diff = sb.diff()
    assert (diff.before, diff.after) == ("@", "live")
    assert ("/note" in diff.paths("changed"), "/extra" in diff.paths("added")) == (True, True)
    second = sb.checkpoint()
    assert (first.parent, second.parent) == (None, first.id)
    back = sb.rollback(first)
    assert (back.id, back.label, back.token) == (first.id, "first", "turn 1")
    assert sb.run("cat note; ls extra").stdout == "one\n"
    sb.rollback(second.id)
    assert sb.run("cat note extra").stdout == "two\nx\n"
    assert "/note" in sb.diff("first", second).paths("changed")
    sb.rollback("first")
    log = sb.log()
    assert [c.id for c in log.checkpoints] == [first.id, second.id]
    assert log.current == first.id
    assert log.checkpoints[0].token == "turn 1"


def test_single_checkpoints_are_removed(sb: Sandbox) -> None:
    one, two, three = (sb.checkpoint(label) for label in ("one", "a/b ~ c", "three"))
    with pytest.raises(Conflict, match="current"):
        sb.remove_checkpoint(three)
    sb.remove_checkpoint("a/b ~ c")
    assert [(c.id, c.parent) for c in sb.log().checkpoints] == [(one.id, None), (three.id, one.id)]
    with pytest.raises(NotFound):
        sb.remove_checkpoint(two)
    with pytest.raises(NotFound):
        sb.rollback(two)
    sb.rollback(one)
    sb.remove_checkpoint(three)
    assert [c.id for c in sb.log().checkpoints] == [one.id]


def test_a_pinned_checkpoint_stays(sb: Sandbox) -> None:
    one, two = sb.checkpoint("one", pin=True), sb.checkpoint("two")
    sb.checkpoint()
    sb.pin(two)
    assert [c.pinned for c in sb.log().checkpoints] == [True, True, False]
    for pinned in (one, two):
        with pytest.raises(Conflict, match="pinned"):
            sb.remove_checkpoint(pinned)
        sb.unpin(pinned)
        sb.remove_checkpoint(pinned)
    assert [c.pinned for c in sb.log().checkpoints] == [False]


def test_limits_bound_the_history(sb: Sandbox) -> None:
    made = [sb.checkpoint("first"), *(sb.checkpoint(durable=True) for _ in range(5))]
    sb.set_retention(Retention(keep_last=2, keep_age=3600, keep_bytes="1T", ancestors=True))
    result = sb.gc()
    assert [r.checkpoint for r in result.removed] == [c.id for c in made[1:4]]
    assert {r.sandbox for r in result.removed} == {sb.name}
    log = sb.log(disk=True)
    assert [c.id for c in log.checkpoints] == [made[0].id, made[4].id, made[5].id]
    assert log.disk is not None
    assert log.disk.private_bytes == sum(c.disk.private_bytes for c in log.checkpoints if c.disk)
    assert sb.log().disk is None


def test_a_paused_sandbox_comes_back(sb: Sandbox) -> None:
    made = sb.pause()
    assert (made.durable, sb.info().status) == (True, "stopped")
    with pytest.raises(Conflict):
        sb.run("true")
    assert sb.resume().id == made.id
    assert (sb.run("echo alive").stdout, sb.info().status) == ("alive\n", "running")
    with pytest.raises(Conflict):
        sb.resume(made)


def test_children_go_on_by_themselves(sb: Sandbox) -> None:
    where = "/tmp" if os.environ.get("DELTABOX_BIN") else None  # the fake daemon's root is a directory of the host
    sb.run("echo start > note", workdir=where, check=True)
    before = sb.checkpoint()
    sb.run("echo later > note", workdir=where, check=True)
    one, two = sb.fork(2, name=f"{sb.name}-kid")
    with one, two:
        assert [one.name, two.name] == [f"{sb.name}-kid-1", f"{sb.name}-kid-2"]
        one.run("echo one > note", workdir=where, check=True)
        notes = [s.run("cat note", workdir=where).stdout for s in (sb, one, two)]
        assert notes == ["later\n", "one\n", "later\n"]
        assert two.log().current == sb.log().current
        with pytest.raises(ForkFailed) as failed:
            sb.fork(3, from_checkpoint=before, name=f"{sb.name}-kid")
        assert set(failed.value.errors) == {one.name, two.name}
        assert all(isinstance(error, Conflict) for error in failed.value.errors.values())
        (third,) = failed.value.children
        with third:
            assert third.run("cat note", workdir=where).stdout == "start\n"


def test_a_durable_checkpoint_says_so(sb: Sandbox) -> None:
    assert sb.checkpoint(durable=True).durable


def test_a_checkpoint_that_does_not_exist(sb: Sandbox) -> None:
    with pytest.raises(NotFound, match="hint: "):
        sb.rollback("no-such-checkpoint")


def test_files_go_in_and_come_out(sb: Sandbox, tmp_path: Path) -> None:
    sb.write("/note", "text\n", mode=0o600)
    assert sb.run("cat note; stat -c %a note").stdout == "text\n600\n"
    assert (sb.read("/note"), sb.read_text("/note")) == (b"text\n", "text\n")
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "data").write_bytes(bytes(range(256)) * 1000)
    (source / "link").symlink_to("/etc/anything")
    sb.put(source, "/there")
    sb.put(source / "sub" / "data", "/there/")
    assert sb.run("cmp there/data there/sub/data && readlink there/link").stdout == "/etc/anything\n"
    assert sb.get("/there", tmp_path / "out") == str(tmp_path / "out")
    assert (tmp_path / "out" / "data").read_bytes() == (source / "sub" / "data").read_bytes()
    assert os.readlink(tmp_path / "out" / "link") == "/etc/anything"
    assert sb.get("/note", tmp_path) == str(tmp_path / "note")
    assert sorted(os.listdir(tmp_path)) == ["note", "out", "source"]


def test_set_user_id_does_not_come_out(sb: Sandbox, tmp_path: Path) -> None:
    sb.run("echo x > tool; chmod 4755 tool", check=True)
    sb.get("/tool", tmp_path / "tool")
    assert (tmp_path / "tool").stat().st_mode & 0o7777 == 0o755


def test_wrong_paths_are_told(sb: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        sb.read("/no/such/file")
    with pytest.raises(UsageError):
        sb.write("relative", "x")
    with pytest.raises(UsageError):
        sb.read("/tmp" if sb.run("mkdir -p tmp").ok else "")
    with pytest.raises(FileNotFoundError):
        sb.put(tmp_path / "missing", "/x")
    (tmp_path / "tmp").mkdir()
    with pytest.raises(FileExistsError):
        sb.get("/tmp", tmp_path)


def test_a_process_in_the_background_answers_line_by_line(sb: Sandbox) -> None:
    with sb.start(["cat"]) as process:
        assert process.poll() is None
        assert [e.id for e in sb.info().execs] == [process.id]
        output = iter(process)
        for text in ("one\n", "two\n"):
            process.write(text)
            assert next(output).data == text.encode()
        process.close_stdin()
        result = process.wait(10)
    assert (result.exit_code, result.stdout) == (0, "one\ntwo\n")
    assert process.poll() == 0


def test_what_poll_reads_is_not_lost(sb: Sandbox) -> None:
    process = sb.start("echo a; echo b >&2")
    while process.poll() is None:
        pass
    assert sorted(process) == [("stderr", b"b\n"), ("stdout", b"a\n")]
    assert process.wait().stdout == "a\n"


def test_waiting_has_a_bound_and_kill_ends(sb: Sandbox) -> None:
    process = sb.start("sleep 60")
    with pytest.raises(TimeoutError):
        process.wait(0.1)
    process.kill()
    assert process.wait(10).signal == signal.SIGKILL
    process.kill()


def test_the_end_of_the_block_kills(sb: Sandbox) -> None:
    with sb.start("sleep 60") as process:
        pass
    assert process.poll() == 128 + signal.SIGKILL


def test_a_command_that_a_rollback_discards_says_so(sb: Sandbox) -> None:
    first = sb.checkpoint()
    process = sb.start("echo begun; sleep 60")
    assert next(iter(process)).data == b"begun\n"
    assert sb.rollback(first).ended >= 1
    result = process.wait(10)
    assert (result.discarded, result.exit_code, result.stdout) == (True, 123, "begun\n")


def test_a_command_whose_sandbox_is_removed_is_lost(home: str) -> None:
    sb = Sandbox.create()
    process = sb.start("sleep 60")
    sb.close()
    with pytest.raises(CommandLost):
        process.wait(10)


def test_names_attach_and_list(home: str) -> None:
    with Sandbox.create("my-box", memory="512M", pids=50) as sb:
        with pytest.raises(Conflict):
            Sandbox.create("my-box")
        info = sb.info()
        assert (info.name, info.limits["memory_bytes"], info.limits["pids"]) == ("my-box", 512 << 20, 50)
        sb.run("echo here > note", check=True)
        with Sandbox.attach("my-box") as same:
            assert same.run("cat note").stdout == "here\n"
        assert "my-box" in [info.name for info in Sandbox.list()]
        assert sb.stats().checkpoints == 0
    assert "my-box" not in [info.name for info in Sandbox.list()]
    with pytest.raises(NotFound):
        Sandbox.attach("my-box")


def test_a_kept_sandbox_outlives_its_block(home: str) -> None:
    with Sandbox.create() as sb:
        name = sb.keep()
    with Sandbox.attach(name) as again:
        again.remove()
    assert name not in [info.name for info in Sandbox.list()]


def test_one_sandbox_is_usable_from_many_threads(sb: Sandbox) -> None:
    results: dict[int, str] = {}

    def work(n: int) -> None:
        results[n] = sb.run(f"sleep 0.1; echo {n}").stdout

    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: f"{n}\n" for n in range(16)}
