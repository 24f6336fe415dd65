"""The client against scripted runtimes: its calls, its errors, the shapes of its answers, every way a runtime ends."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from fastclaw import limits
from fastclaw.client import RuntimeClient
from fastclaw.client.environment import input_params, ran_of
from fastclaw.errors import (
    ExecFailed,
    InvalidParams,
    InvalidRequest,
    InvalidState,
    IoError,
    ProtocolError,
    StartFailed,
)
from fastclaw.params import check_run, convert
from fastclaw.runtime import RunRequest, RunResult
from tests.client.fakes import POLITE, fake

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_initialize_on_entering_and_shutdown_on_leaving() -> None:
    client = RuntimeClient.spawn(fake(POLITE), namespace="demo", options={"a": 1})
    assert repr(client) == f"<RuntimeClient of {sys.executable}, not entered>"
    async with client as rt:
        assert repr(rt) == f"<RuntimeClient pid={rt.pid} running>"
        assert rt.welcome is not None
        assert rt.welcome.server == {"name": "polite", "version": "1"}
        assert rt.welcome.env == {"NAMESPACE": "demo"}
        assert rt.capabilities == {"wait"}
    assert (rt.exit_code, repr(rt)) == (0, f"<RuntimeClient pid={rt.pid} ended>")


async def test_without_namespace_nothing_is_sent_before_the_caller_asks() -> None:
    async with RuntimeClient.spawn(fake(POLITE)) as rt:
        assert rt.welcome is None
        assert await rt.call("first", {"x": [1, None, "é"]}) == {"x": [1, None, "é"]}
        assert (await rt.initialize("late")).env == {"NAMESPACE": "late"}


async def test_answers_find_their_calls_in_any_order() -> None:
    script = """
held = [next(requests()) for _ in range(100)]
for request in reversed(held):
    answer(request, request["params"])
answer(next(requests()), {})
"""
    async with RuntimeClient.spawn(fake(script)) as rt:
        answers = await asyncio.gather(*(rt.call("echo", {"n": number}) for number in range(100)))
        assert answers == [{"n": number} for number in range(100)]


async def test_no_more_calls_under_way_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CLIENT_PENDING", 2)
    # Answers two at a time, with how many requests had come by then.
    script = """
import select
held = []
while len(held) < 2:
    held.append(json.loads(sys.stdin.buffer.raw.readline()))
early = bool(select.select([0], [], [], 0.3)[0])
for request in held:
    answer(request, early)
answer(json.loads(sys.stdin.buffer.raw.readline()), "third")
"""
    async with RuntimeClient.spawn(fake(script)) as rt:
        assert await asyncio.gather(*(rt.call("x") for _ in range(3))) == [False, False, "third"]


async def test_a_wire_error_is_the_matching_exception() -> None:
    script = """
for request in requests():
    say(id=request["id"], error={"code": -32000, "message": "exec failed: no such file", "data": {
        "kind": "exec_failed", "reason": "not_found", "fault": "caller", "retryable": False, "path": "/x"}})
"""
    async with RuntimeClient.spawn(fake(script)) as rt:
        with pytest.raises(ExecFailed) as caught:
            await rt.exec(["x"])
        assert str(caught.value) == "exec failed: no such file"
        assert (caught.value.reason, caught.value.fault, caught.value.retryable) == ("not_found", "caller", False)
        assert caught.value.data == {"path": "/x"}


async def test_a_refused_initialize_leaves_no_child() -> None:
    script = """
for request in requests():
    say(id=request["id"], error={"code": -32001, "message": str(os.getpid()), "data": {"reason": "image_not_found"}})
"""
    with pytest.raises(StartFailed) as caught:
        async with RuntimeClient.spawn(fake(script), namespace="x"):
            pytest.fail("entered")
    assert caught.value.reason == "image_not_found"
    assert _gone(int(str(caught.value)))


async def test_the_end_of_the_runtime_wakes_every_call_and_fails_later_ones_alike() -> None:
    script = """
for _ in range(3):
    next(requests())
sys.exit(7)
"""
    async with RuntimeClient.spawn(fake(script)) as rt:
        results = await asyncio.gather(*(rt.call("x", timeout_s=None) for _ in range(3)), return_exceptions=True)
        with pytest.raises(IoError) as later:
            await rt.call("x")
    for error in [*results, later.value]:
        assert isinstance(error, IoError)
        assert str(error) == "io error: runtime exited with code 7"
        assert (error.reason, error.data) == ("runtime_exited", {"exit_code": 7})


HELD_BY_A_GRANDCHILD = """
next(requests())
held, release = os.pipe()
os.set_inheritable(held, True)
if os.fork() == 0:
    os.close(release)
    sys.stdin.close()
    os.read(0, 1)
os._exit(5)
"""


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("next(requests()); os.kill(os.getpid(), 9)", "code -9"),
        ("next(requests()); os.close(1); sys.stdin.read()", "closed its stdout"),
        ("os.close(0); sys.exit(1)", "code 1"),
        (HELD_BY_A_GRANDCHILD, "code 5"),
    ],
)
async def test_each_way_to_go_is_told(monkeypatch: pytest.MonkeyPatch, script: str, told: str) -> None:
    monkeypatch.setattr(limits, "CLIENT_EXIT_NOTICE_MS", 50)
    async with RuntimeClient.spawn(fake(script)) as rt:
        with pytest.raises(IoError, match=told):
            await rt.call("x", {"x": "x" * limits.MIB})


async def test_a_late_answer_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    script = """
first = next(requests())
second = next(requests())
answer(first, "late")
answer(second, "in time")
answer(next(requests()), {})
"""
    caplog.set_level("DEBUG", logger="fastclaw.client.rpc")
    async with RuntimeClient.spawn(fake(script)) as rt:
        with pytest.raises(IoError, match=r"no answer to slow within 0\.05 s") as caught:
            await rt.call("slow", timeout_s=0.05)
        assert caught.value.reason == "no_answer"
        assert await rt.call("fast") == "in time"
    assert "dropped an answer with id 1" in caplog.text


async def test_a_doubled_answer_settles_one_call() -> None:
    script = """
for request in requests():
    answer(request, "once")
    answer(request, "twice")
"""
    async with RuntimeClient.spawn(fake(script)) as rt:
        assert [await rt.call("x") for _ in range(3)] == ["once"] * 3


@pytest.mark.parametrize("line", ["no json", "7", '{"jsonrpc":"2.0","id":1}', '{"id":1,"result":1,"error":{}}', "[7]"])
async def test_a_line_that_is_no_answer_ends_the_connection(line: str) -> None:
    script = f"next(requests()); print({line!r}, flush=True); sys.stdin.read()"
    async with RuntimeClient.spawn(fake(script)) as rt:
        for _ in range(2):
            with pytest.raises(ProtocolError, match=r"^protocol error: the runtime sent"):
                await rt.call("x")


async def test_a_line_of_the_limit_arrives_and_a_longer_one_is_a_protocol_error() -> None:
    script = f"""
for request in requests():
    room = {limits.MAX_LINE_BYTES} - len(json.dumps({{"jsonrpc": "2.0", "id": request["id"], "result": ""}}))
    answer(request, "x" * (room + request["params"]["more"]))
"""
    async with RuntimeClient.spawn(fake(script)) as rt:
        assert len(await rt.call("x", {"more": 0})) > limits.MAX_LINE_BYTES - 100
        with pytest.raises(ProtocolError, match="a line over"):
            await rt.call("x", {"more": 1})


async def test_answers_in_a_batch_count() -> None:
    script = """
held = [next(requests()) for _ in range(2)]
print(json.dumps([{"jsonrpc": "2.0", "id": r["id"], "result": r["method"]} for r in held]), flush=True)
answer(next(requests()), {})
"""
    async with RuntimeClient.spawn(fake(script)) as rt:
        assert [*await asyncio.gather(rt.call("a"), rt.call("b"))] == ["a", "b"]


async def test_params_that_are_no_json_do_not_leave() -> None:
    async with RuntimeClient.spawn(fake(POLITE)) as rt:
        for params, path in (({"x": "\ud800"}, "$.x"), ({"cmd": ["a", "\udcff"]}, "$.cmd[1]"), ({"x": {1, 2}}, "$")):
            with pytest.raises(InvalidParams, match="no JSON") as refused:
                await rt.call("x", params)
            assert refused.value.data["path"] == path
        with pytest.raises(InvalidParams, match=r"\$\.env\.'\\udcff'"):
            await rt.call("x", {"env": {"\udcff": "x"}})
        with pytest.raises(InvalidRequest) as caught:
            await rt.call("x", {"x": "x" * limits.MAX_LINE_BYTES})
        assert caught.value.reason == "line_too_long"
        assert await rt.call("x", {"x": 1}) == {"x": 1}


async def test_an_answer_of_the_wrong_shape_is_a_protocol_error() -> None:
    async with RuntimeClient.spawn(fake(POLITE)) as rt:
        with pytest.raises(ProtocolError, match="answer to exec has the wrong shape"):
            await rt.exec(["x"])
        with pytest.raises(ProtocolError, match="answer to wait has the wrong shape"):
            await rt.wait("x", timeout_ms=5)


async def test_a_stubborn_runtime_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLIENT_SHUTDOWN_MS", "CLIENT_EXIT_MS"):
        monkeypatch.setattr(limits, name, 50)
    script = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
answer(next(requests()), "deaf from now on")
while True:
    signal.pause()
"""
    async with RuntimeClient.spawn(fake(script)) as rt:
        await rt.call("x")
    assert rt.exit_code == -signal.SIGKILL


async def test_a_runtime_that_does_not_answer_shutdown_goes_at_eof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CLIENT_SHUTDOWN_MS", 50)
    async with RuntimeClient.spawn(fake("sys.stdin.read(); sys.exit(4)")) as rt:
        pid = rt.pid
    assert rt.exit_code == 4
    assert _gone(pid)


async def test_a_longer_shutdown_timeout_of_the_runtime_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It got EOF, TERM and KILL in the middle of a shutdown for which it had been given the time."""
    monkeypatch.setattr(limits, "CLIENT_SHUTDOWN_MS", 50)
    script = """
for request in requests():
    if request["method"] == "shutdown":
        time.sleep(0.3)
    answer(request, {})
"""
    options = {"shutdown_timeout_ms": limits.SHUTDOWN_TIMEOUT_MS + 20_000}
    async with RuntimeClient.spawn(fake(script), namespace="x", options=options) as rt:
        await rt.shutdown()
    async with RuntimeClient.spawn(fake(script), namespace="x") as rt:
        with pytest.raises(IoError, match=r"no answer to shutdown within 0\.05 s"):
            await rt.shutdown()


async def test_leaving_while_calls_wait_fails_them() -> None:
    script = """
for request in requests():
    if request["method"] == "shutdown":
        answer(request, {})
        break
"""
    async with RuntimeClient.spawn(fake(script)) as rt:
        waiting = asyncio.ensure_future(rt.wait("x"))
        await asyncio.sleep(0)
    with pytest.raises(IoError, match="code 0"):
        await waiting


async def test_a_runtime_that_cannot_be_started() -> None:
    with pytest.raises(IoError, match="cannot be started: No such file"):
        async with RuntimeClient.spawn(["/no/such/runtime"]):
            pytest.fail("entered")


async def test_shutdown_twice_is_an_error_of_the_second() -> None:
    async with RuntimeClient.spawn(fake(POLITE), namespace="x") as rt:
        await rt.shutdown()
        assert await rt.exited(timeout_s=10) == 0
        with pytest.raises(IoError, match="code 0"):
            await rt.shutdown()


async def test_an_error_under_the_null_id_is_nobodys() -> None:
    script = """
request = next(requests())
say(id=None, error={"code": -32002, "message": "invalid state: x"})
say(id=request["id"], error={"code": -32002, "message": "invalid state: y", "data": None})
answer(next(requests()), {})
"""
    async with RuntimeClient.spawn(fake(script)) as rt:
        with pytest.raises(InvalidState, match="invalid state: y"):
            await rt.kill("x")


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_on_either_loop(run: Callable[[Coroutine[None, None, None]], None]) -> None:
    async def main() -> None:
        async with RuntimeClient.spawn(fake(POLITE), namespace="x") as rt:
            answers = await asyncio.gather(*(rt.call("echo", {"n": number}) for number in range(20_000)))
            assert [answer["n"] for answer in answers] == list(range(20_000))
        assert rt.exit_code == 0
        async with RuntimeClient.spawn(fake("next(requests()); sys.exit(7)")) as rt:
            with pytest.raises(IoError, match="code 7"):
                await rt.call("x")

    run(main())


async def test_the_list_is_all_of_its_pages() -> None:
    script = """
def row(number):
    return {"process_id": str(number), "state": "running", "cmd": ["x"], "started_at": 1.0}
pages = [([0, 1], "1"), ([2, 3], "3"), ([4], None), ([], "again"), ([], "again")]
afters = []
for request in requests():
    if request["method"] == "list":
        afters.append(request.get("params", {}).get("after"))
        numbers, last = pages.pop(0)
        answer(request, {"processes": [row(number) for number in numbers], **({"next": last} if last else {})})
    elif request["method"] == "afters":
        answer(request, afters)
    else:
        answer(request, {})
        break
"""
    async with RuntimeClient.spawn(fake(script)) as rt:
        assert [process.process_id for process in await rt.list()] == ["0", "1", "2", "3", "4"]
        assert await rt.call("afters") == [None, "1", "3"]
        with pytest.raises(ProtocolError, match="'again' a second time"):
            await rt.list()


# --- what a run has left ---


def a_result(**fields: Any) -> RunResult:
    record: dict[str, Any] = {"process_id": "p", "state": "exited", "exit_code": 0, "reason": "exited"}
    return RunResult(**record | fields)


def test_the_record_is_taken_over() -> None:
    timings, usage = {"run_us": 5}, {"user_us": 1}
    ran = ran_of(a_result(exit_code=None, signal=9, reason="killed", timings=timings, usage=usage))
    assert (ran.process_id, ran.exit_code, ran.signal, ran.reason) == ("p", None, 9, "killed")
    assert (ran.timings, ran.usage) == (timings, usage)


def test_text_and_base64_are_bytes() -> None:
    data = os.urandom(100)
    ran = ran_of(a_result(stdout="é\0", stderr=None, stderr_base64=base64.b64encode(data).decode()))
    assert (ran.stdout, ran.stderr) == ("é\0".encode(), data)


def test_what_is_missing_and_what_is_not_said() -> None:
    ran = ran_of(a_result(stdout="ab", dropped={"stdout": 3, "stderr": 0}, gap_at={"stdout": 1}, incomplete=True))
    assert (ran.dropped, ran.gap_at, ran.incomplete) == ({"stdout": 3, "stderr": 0}, {"stdout": 1}, True)
    ran = ran_of(a_result(stdout="", stderr=None))  # null: its run was answered before
    assert (ran.stdout, ran.stderr) == (b"", b"")
    assert (ran.gap_at, ran.incomplete, ran.usage, ran.oom_kills, ran.memory) == ({}, False, None, 0, {})


@pytest.mark.parametrize("stream", ["stdout_base64", "stderr_base64"])
@pytest.mark.parametrize("encoded", ["é", "YQ", "YQ==\n", "Y Q==", "YQ==YQ=="])
def test_base64_that_is_none(stream: str, encoded: str) -> None:
    with pytest.raises(ProtocolError, match="base64"):
        ran_of(a_result(**{stream: encoded}))


# --- input ---


def test_input_is_text_where_it_is_some() -> None:
    assert input_params(None) == {}
    assert input_params("é") == input_params("é".encode()) == {"input": "é"}
    assert input_params(b"") == {"input": ""}
    assert input_params(b"\xff") == {"input_base64": "/w=="}


@given(st.one_of(st.binary(max_size=50), st.text(st.characters(exclude_categories=["Cs"]), max_size=50)))
def test_the_runtime_gets_what_was_given(data: bytes | str) -> None:
    request = convert({"cmd": ["x"], **input_params(data)}, RunRequest)
    assert check_run(request) == (data.encode() if isinstance(data, str) else data)
