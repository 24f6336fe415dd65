"""What one operation believes, and what it does where an answer is another than the contract's."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, cast

import orjson
import pytest

from fastclaw.bench.loads import LOADS, Load, must_be_good
from fastclaw.bench.recorder import Failed
from tests.bench.rig import job

if TYPE_CHECKING:
    from pathlib import Path

    from fastclaw.bench.job import LoadName

GOOD = {"state": "exited", "exit_code": 0, "signal": None, "reason": "exited"}


class Script:
    """Answers by method: a result, or a word for a failure; what was called is kept."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.called: list[str] = []

    async def result(self, method: str, params: bytes, within_ms: int | None = None) -> tuple[int, dict[str, Any]]:
        orjson.loads(params)
        self.called.append(method)
        answer = self.answers.get(method, {})
        if isinstance(answer, str):
            raise Failed(answer)
        return len(self.called), answer


def load_of(name: LoadName, script: Script, offered: list[str] | None = None, **more: Any) -> Load:
    return LOADS[name](cast("Any", script), job(["x"], name, deadline_ms=200, **more), offered or ["wait", "run"])


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({}, "wrong_result"),
        ({**GOOD, "exit_code": "0"}, "wrong_result"),
        ({**GOOD, "exit_code": 0.0}, "wrong_result"),
        ({**GOOD, "reason": None}, "wrong_result"),
        ({**GOOD, "reason": ["x"]}, "wrong_result"),
        ({**GOOD, "exit_code": 1}, "exit code 1"),
        ({**GOOD, "exit_code": None, "signal": 11, "reason": "signaled"}, "signal 11"),
        ({**GOOD, "exit_code": None, "signal": "KILL", "reason": "signaled"}, "wrong_result"),
        ({**GOOD, "reason": "timeout"}, "timeout"),
        ({**GOOD, "reason": "oom"}, "oom"),
        ({**GOOD, "reason": "new"}, "wrong_result"),
    ],
)
def test_a_record_that_is_not_good_has_a_reason(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(Failed, match=f"^{reason}$"):
        must_be_good(record)


def test_a_good_record() -> None:
    must_be_good(GOOD)


@pytest.mark.parametrize("name", ["exec", "hold", "environments"])
@pytest.mark.parametrize(
    "answer", [{}, {"process_id": 1, "stdio_addr": "a", "stderr_addr": "b"}, {"process_id": "p", "stdio_addr": "a"}]
)
async def test_an_exec_that_tells_no_process(name: LoadName, answer: dict[str, Any]) -> None:
    script = Script(exec=answer, environment_start={"environment": "bench-1"})
    load = load_of(name, script)
    begun = load.begin() if name == "hold" else load.once(0)
    with pytest.raises(Failed, match="wrong_result"):
        await begun


async def test_an_environment_that_failed_is_stopped_all_the_same() -> None:
    script = Script(environment_start={"environment": "bench-1", "container": "c1"}, exec="overloaded")
    load = load_of("environments", script)
    with pytest.raises(Failed, match="overloaded"):
        await load.once(0)
    assert script.called == ["environment_start", "exec", "environment_stop"]
    assert list(load.containers) == ["c1"]


async def test_an_environment_is_started_with_the_options_that_one_may_have() -> None:
    sent: list[Any] = []

    class Listens(Script):
        async def result(self, method: str, params: bytes, within_ms: int | None = None) -> tuple[int, dict[str, Any]]:
            sent.append(orjson.loads(params))
            return await super().result(method, params)

    options = {"image": "i", "pool": [], "environment": False, "journal": "/tmp/j"}
    load = load_of("environments", Listens(environment_start={"environment": "another"}), options=options)
    with pytest.raises(Failed, match="wrong_result"):
        await load.once(0)
    assert sent == [{"environment": "bench-1", "options": {"image": "i"}}, {"environment": "bench-1"}]


async def test_environments_that_were_given_up_are_stopped_in_the_end() -> None:
    script = Script(environment_start="no_answer", environment_stop="no_answer")
    load = load_of("environments", script)
    for _ in range(2):
        with pytest.raises(Failed, match="no_answer"):
            await load.once(0)
    script.called.clear()
    script.answers.clear()
    await load.end()
    assert script.called == ["environment_stop", "environment_stop"]


async def test_a_file_that_comes_back_otherwise() -> None:
    with pytest.raises(Failed, match="wrong_bytes"):
        await load_of("files", Script(read_file={"text": "x"})).once(0)


@pytest.mark.parametrize(("offered", "called"), [(["file_helper"], ["remove"]), (["run"], ["run"]), (["files"], [])])
async def test_files_are_removed_by_what_there_is(offered: list[str], called: list[str]) -> None:
    script = Script(remove="io_error", run="not_found")
    await load_of("files", script, offered).end()
    assert script.called == called


async def test_another_process_takes_the_place_of_one_that_fails(tmp_path: Path) -> None:
    served = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        served += 1
        if served > 1:  # the first one leaves without a word
            writer.write(await reader.readline())
            await reader.read()
        writer.close()

    path = str(tmp_path / "s")
    server = await asyncio.start_unix_server(serve, path)
    script = Script(exec={"process_id": "p", "stdio_addr": path, "stderr_addr": path})
    load = load_of("hold", script)
    await load.begin()
    with pytest.raises(Failed, match="stream_ended"):
        await load.once(0)
    await load.once(0)
    await load.end()
    assert script.called == ["exec", "kill", "exec", "kill"]
    server.close()
    await asyncio.sleep(0)


async def test_where_no_other_can_be_had_the_next_one_tries_again() -> None:
    script = Script(exec="overloaded")
    load = load_of("hold", script)
    cast("Any", load)._free.put_nowait(None)
    for _ in range(2):
        with pytest.raises(Failed, match="overloaded"):
            await load.once(0)
    assert set(script.called) == {"exec"}


def test_the_least_size_of_a_file_is_a_byte() -> None:
    for size in (1, 7, 4096):
        load = cast("Any", load_of("files", Script(), size=size))
        assert len(load._text) == size
        assert load._directory != os.sep
