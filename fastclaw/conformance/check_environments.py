"""Checks of environments: their names, tokens and ends, what a reset takes away, and what they do not share."""

import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from fastclaw import limits
from fastclaw.conformance.check_lifecycle import begin_family
from fastclaw.conformance.rig import Rig, Session, existing, none_bears, soon
from fastclaw.conformance.runner import proves
from fastclaw.conformance.wire import (
    CANCELLED,
    EXEC_FAILED,
    INVALID_PARAMS,
    INVALID_STATE,
    START_FAILED,
    Broken,
    NotOffered,
    data_of,
    ending,
    expect,
    outputs,
    refused,
)

NOBODY = "no-such-environment"
NO_IMAGE = "localhost/fastclaw-check/no-such-image:latest"
START_MS = limits.CLIENT_INITIALIZE_MS
ROUNDS = 5
"""In which a start is caught on its way, or never is: then there is nothing to take back, and nothing broken."""

LIVES_MS = 300
WRITTEN = '/tmp/"$1" /dev/shm/"$1" /"$1"'
"""Where a file is written: one of them can be, in most images."""


# --- What the checks are made of ---


def post(rig: Rig, session: Session, name: str | None = None, token: str | None = None, **options: Any) -> Any:
    """Post a start with the run's options and these; its id."""
    given = {"environment": name, "token": token, "options": {**rig.options, **options}}
    return session.post("environment_start", {key: value for key, value in given.items() if value is not None})


async def begun(session: Session, request_id: Any) -> dict[str, Any]:
    """What a start that was posted answers."""
    answer = await session.answer(request_id, START_MS)
    info = answer.get("result")
    if not isinstance(info, dict) or not isinstance(info.get("environment"), str):
        raise Broken(f"environment_start answered {answer.get('error', info)}")
    return info


async def stop(session: Session, name: str) -> dict[str, Any]:
    """The answer to `environment_stop`."""
    return await session.answer(session.post("environment_stop", {"environment": name}), START_MS)


async def reset(session: Session, name: str) -> dict[str, Any]:
    """What `environment_reset` answers."""
    info = await begun(session, session.post("environment_reset", {"environment": name}))
    expect(info["environment"] == name, f"a reset of {name} answered {info}")
    return info


@asynccontextmanager
async def environment(
    rig: Rig, session: Session, name: str | None = None, **options: Any
) -> AsyncIterator[dict[str, Any]]:
    """One for the block: what its start answered."""
    info = await begun(session, post(rig, session, name, **options))
    try:
        yield info
    finally:
        if not session.lost:
            await stop(session, info["environment"])


async def rows(session: Session) -> dict[str, dict[str, Any]]:
    """The rows of `environment_list` by environment."""
    return {row["environment"]: row for row in (await session.result("environment_list"))["environments"]}


async def processes(session: Session, name: str | None = None) -> set[str]:
    """The processes that `list` shows of an environment."""
    params = {} if name is None else {"environment": name}
    return {row["process_id"] for row in (await session.result("list", params))["processes"]}


async def lives(session: Session, process_id: str) -> None:
    """Raise `Broken` where this process does not run."""
    told = await session.result("wait", {"process_id": process_id, "timeout_ms": 0})
    expect(told.get("state") == "running", f"a process of another environment has ended: {told}")


def a_name() -> str:
    """One that no environment has."""
    return f"check-{uuid.uuid4().hex[:12]}"


async def said(rig: Rig, session: Session, name: str, script: str, *words: str) -> str:
    """What a shell script writes in an environment."""
    out, _ = await session.outputs([*rig.shell(script), *words], environment=name)
    return out.decode("utf-8", "replace")


async def write(rig: Rig, session: Session, name: str, token: str) -> None:
    """Write files named like the token in an environment.

    Raises:
        NotOffered: it has no place to write to.
    """
    script = f'for file in {WRITTEN}; do (echo "$1" >"$file") 2>/dev/null; done'
    await said(rig, session, name, script, token)
    if not await written(rig, session, name, token):
        raise NotOffered("there is nowhere to write to in it")


async def written(rig: Rig, session: Session, name: str, token: str) -> bool:
    """Whether an environment has one of the files that `write` makes."""
    return token in await said(rig, session, name, f"cat {WRITTEN} 2>/dev/null", token)


def contained(info: dict[str, Any]) -> None:
    """For a check of what only a container promises.

    Raises:
        NotOffered: the environment names none.
    """
    if not isinstance(info.get("container"), str):
        raise NotOffered("the environment names no container")


# --- Start, names, tokens ---


@proves("ENV-START")
async def _start(rig: Rig, session: Session) -> None:
    async with environment(rig, session) as info:
        told = {field: info.get(field) for field in ("lane", "working_dir", "user")}
        expect(all(isinstance(value, str) and value for value in told.values()), f"the start answered {info}")
        out, _ = await session.outputs(rig.words.pwd, environment=info["environment"])
        expect(out.decode() == f"{told['working_dir']}\n", f"working_dir is {told['working_dir']!r}, pwd said {out!r}")
        expect("status" in await session.result("health", {"environment": info["environment"]}), "no health of it")


@proves("ENV-MAIN")
async def _main(rig: Rig, session: Session) -> None:
    expect("main" in await rows(session), "initialize started no environment main")
    process = await session.exec(rig.words.sleep(300))
    if session.offers("list"):
        expect(process.id in await processes(session, "main"), "a call without environment did not mean main")


@proves("ENV-MAIN")
async def _no_main(rig: Rig, common: Session) -> None:
    async with rig.started(environment=False) as session:
        expect(not await rows(session), f"there are environments: {await rows(session)}")
        await session.error("exec", {"cmd": rig.words.true}, INVALID_STATE, "unknown_environment")
        expect("status" in await session.result("health"), "health failed without main")


@proves("ENV-UNKNOWN")
async def _unknown(rig: Rig, session: Session) -> None:
    calls: dict[str, dict[str, Any]] = {"exec": {"cmd": rig.words.true}, "health": {}}
    calls |= {"run": {"cmd": rig.words.true}} if session.offers("run") else {}
    calls |= {"list": {}} if session.offers("list") else {}
    for method, params in {**calls, "environment_stop": {}, "environment_reset": {}}.items():
        for name in (NOBODY, ""):
            await session.error(method, {**params, "environment": name}, INVALID_STATE, "unknown_environment")


@proves("ENV-NAME")
async def _name(rig: Rig, session: Session) -> None:
    name = a_name()
    first, second = (post(rig, session, name) for _ in range(2))
    refused(await session.answer(second, START_MS), INVALID_STATE, "environment_exists")
    await begun(session, first)
    for taken in (name, "main"):
        refused(await session.answer(post(rig, session, taken), START_MS), INVALID_STATE, "environment_exists")
    await stop(session, name)
    async with environment(rig, session, name) as info:
        expect(info["environment"] == name, f"asked for {name}, got {info}")


@proves("ENV-TOKEN")
async def _token(rig: Rig, session: Session) -> None:
    token, before = uuid.uuid4().hex, await rows(session)
    both = [post(rig, session, token=token) for _ in range(2)]
    another = post(rig, session, token=token, max_processes=7)
    first, second = [(await begun(session, one))["environment"] for one in both]
    try:
        expect(first == second, f"one token stands for {first} and {second}")
        _other_request(await session.answer(another, START_MS))
        later = (await begun(session, post(rig, session, token=token)))["environment"]
        expect(first == later, f"one token stands for {first} and {later}")
        _other_request(await session.answer(post(rig, session, a_name(), token), START_MS))
        expect(len(await rows(session)) == len(before) + 1, "a token has started several environments")
    finally:
        await stop(session, first)
    again = (await begun(session, post(rig, session, token=token)))["environment"]
    expect(again in await rows(session), "a token still stands for an environment that has ended")
    await stop(session, again)


def _other_request(answer: dict[str, Any]) -> None:
    path = data_of(refused(answer, INVALID_PARAMS)).get("path")
    expect(path == "$.token", f"data.path is {path!r}")


@proves("ENV-OPTION")
async def _option(rig: Rig, session: Session) -> None:
    for options, path in (({"max_proceses": 7}, "max_proceses"), ({"environment": False}, "environment")):
        params = {"options": {**rig.options, **options}}
        data = await session.rejects("environment_start", params, f"$.options.{path}")
        if path == "max_proceses":
            expect(data.get("nearest") == "max_processes", f"data.nearest is {data.get('nearest')!r}")


@proves("ENV-FAILS-ALONE")
async def _fails_alone(rig: Rig, session: Session) -> None:
    starts = [
        post(rig, session, image=NO_IMAGE, pull="never") if number == 1 else post(rig, session) for number in range(3)
    ]
    answers = [await session.answer(one, START_MS) for one in starts]
    up = [answer["result"] for answer in answers if "result" in answer]
    for info in up:
        await stop(session, info["environment"])
    if not any(info.get("image") for info in up):
        raise NotOffered("its environments are made of no image")
    refused(answers[1], START_FAILED, "image_not_found")
    expect(len(up) == 2, f"{len(up)} of 2 came up beside one that could not")


# --- What they do not share ---


@proves("ENV-APART")
async def _apart(rig: Rig, session: Session) -> None:
    asked = {"CHECK_A": "first"}
    async with (
        environment(rig, session, env=asked, max_processes=1, queue_limit=0) as one,
        environment(rig, session) as two,
    ):
        first, second = one["environment"], two["environment"]
        for name, wanted in ((first, b"first\n"), (second, b"\n")):
            out, _ = await session.outputs(rig.words.printenv("CHECK_A"), environment=name)
            expect(out.strip() == wanted.strip(), f"a variable of {first} is {out!r} in {name}")
        await soon("its command has ended", lambda: _is_free(session, first))
        held = await session.exec(rig.words.sleep(300), environment=first)
        params = {"cmd": rig.words.true, "environment": first}
        await session.error("exec", params, EXEC_FAILED, "overloaded")
        other = await session.exec(rig.words.sleep(300), environment=second)
        if session.offers("list"):
            told = [await processes(session, name) for name in (first, second, "main")]
            expect(held.id in told[0] and other.id in told[1], f"{held.id} and {other.id} are listed as {told}")
            shared = (told[0] & told[1]) | (told[0] & told[2]) | (told[1] & told[2])
            expect(not shared, f"listed in several environments: {shared}")


async def _is_free(session: Session, name: str) -> bool:
    return bool((await rows(session))[name].get("live", 0) == 0)


@proves("ENV-APART-FILES")
async def _apart_files(rig: Rig, session: Session) -> None:
    token = uuid.uuid4().hex
    async with environment(rig, session) as one, environment(rig, session) as two:
        contained(one)
        first, second = one["environment"], two["environment"]
        expect(one["container"] != two.get("container"), f"both are {one['container']}")
        await write(rig, session, first, token)
        await session.ready([*rig.shell("echo ready; sleep 300; :"), token], environment=first)
        everything = f"cat {WRITTEN} /proc/[0-9]*/cmdline 2>/dev/null"
        expect(token not in await said(rig, session, second, everything, "*"), f"{second} sees what is in {first}")


@proves("ENV-IDS")
async def _ids(rig: Rig, session: Session) -> None:
    session.needs("wait")
    async with environment(rig, session) as one, environment(rig, session) as two:
        names = (one["environment"], two["environment"], "main")
        held = [await session.exec(rig.words.sleep(300), environment=name) for name in names]
        expect(len({process.id for process in held}) == len(names), "a process id came twice")
        await held[0].kill(grace_ms=0)
        expect((await held[0].wait()).get("reason") == "killed", "kill by id did not reach the process")
        await lives(session, held[1].id)
        if session.offers("signal"):
            await session.result("signal", {"process_id": held[1].id, "signal": "KILL"})
            expect((await held[1].wait()).get("state") == "exited", "signal by id did not reach the process")
        await lives(session, held[2].id)


# --- Its end ---


@proves("ENV-STOP")
async def _stop(rig: Rig, session: Session) -> None:
    session.needs("wait")
    witness = await session.exec(rig.words.sleep(300))
    name = (await begun(session, post(rig, session)))["environment"]
    held = await session.exec(rig.words.sleep(300), environment=name)
    answer = await stop(session, name)
    expect(answer.get("result") == {}, f"environment_stop answered {answer}")
    expect(name not in await rows(session), "it is still listed")
    expect(not existing(held.paths), "sockets are left")
    await session.error("wait", {"process_id": held.id}, INVALID_STATE, "unknown_process")
    refused(await stop(session, name), INVALID_STATE, "unknown_environment")
    await session.error("exec", {"cmd": rig.words.true, "environment": name}, INVALID_STATE, "unknown_environment")
    await lives(session, witness.id)


@proves("ENV-STOP")
async def _stop_family(rig: Rig, session: Session) -> None:
    session.needs("kill_tree")
    token = uuid.uuid4().hex
    async with environment(rig, session) as info:
        await begin_family(rig, session, token, environment=info["environment"])
    none_bears(token)


@proves("ENV-STOP-EARLY")
async def _stop_early(rig: Rig, session: Session) -> None:
    for _ in range(ROUNDS):
        name = a_name()
        starting = post(rig, session, name)
        stopping = await stop(session, name)
        answer = await session.answer(starting, START_MS)
        if "result" in answer and "error" in stopping:  # it was not there yet
            stopping = await stop(session, name)
        expect(stopping.get("result") == {}, f"environment_stop answered {stopping}")
        expect(name not in await rows(session), "it is still listed")
        if "error" in answer:
            refused(answer, INVALID_STATE, "environment_stopped")
            return


@proves("ENV-CANCEL")
async def _cancel(rig: Rig, session: Session) -> None:
    session.needs("cancel")
    for _ in range(ROUNDS):
        name = a_name()
        starting = post(rig, session, name)
        expect(await session.result("cancel", {"id": starting}) == {}, "cancel did not answer {}")
        answer = await session.answer(starting, START_MS)
        if "error" in answer:
            refused(answer, CANCELLED, "cancelled")
            expect(name not in await rows(session), "it is still listed")
            return
        await stop(session, name)


@proves("ENV-LIFETIME")
async def _lifetime(rig: Rig, session: Session) -> None:
    async with environment(rig, session) as other:
        name = (await begun(session, post(rig, session, lifetime_ms=LIVES_MS)))["environment"]
        await soon("its lifetime ends it", lambda: _is_gone(session, name))
        await session.error("environment_reset", {"environment": name}, INVALID_STATE, "unknown_environment")
        expect(other["environment"] in await rows(session), "another one has ended with it")


async def _is_gone(session: Session, name: str) -> bool:
    return name not in await rows(session)


@proves("ENV-SHUTDOWN")
async def _shutdown(rig: Rig, common: Session) -> None:
    token, held = uuid.uuid4().hex, []
    async with rig.started(environment=False) as session:
        for one in [post(rig, session) for _ in range(2)]:
            name = (await begun(session, one))["environment"]
            held.append(await session.exec(rig.words.sleep(300), environment=name))
            if rig.words.shell is not None:
                await begin_family(rig, session, token, environment=name)
        await session.result("shutdown")
        code = await session.exit_code(limits.CLIENT_SHUTDOWN_MS)
        expect(code == 0, f"the runtime ended with code {code}")
        none_bears(token)
        left = existing(path for process in held for path in process.paths)
        expect(not left, f"sockets are left: {left}")


# --- Reset ---


@proves("ENV-RESET")
async def _reset(rig: Rig, session: Session) -> None:
    session.needs("wait")
    witness = await session.exec(rig.words.sleep(300))
    async with environment(rig, session) as info:
        name = info["environment"]
        held = await session.exec(rig.words.sleep(300), environment=name)
        unread = await session.exec(rig.words.echo("unread"), environment=name)
        await unread.wait()
        await reset(session, name)
        record = await held.wait(timeout_ms=0)
        expect(ending(record)[::2] == ("exited", "killed"), f"what ran is told as {record}")
        record = await unread.wait()
        told = (*ending(record), record.get("gap"))
        expect(told == ("exited", 0, "exited", True), f"what had ended, its output unread, is told as {record}")
        expect(not existing((*held.paths, *unread.paths)), "sockets are left")
        expect((await session.outputs(rig.words.echo("new"), environment=name))[0] == b"new\n", "nothing runs in it")
        await lives(session, witness.id)


@proves("ENV-RESET")
async def _reset_family(rig: Rig, session: Session) -> None:
    session.needs("kill_tree")
    token = uuid.uuid4().hex
    async with environment(rig, session) as info:
        await begin_family(rig, session, token, environment=info["environment"])
        await reset(session, info["environment"])
        none_bears(token)


@proves("ENV-RESET-RUN")
async def _reset_run(rig: Rig, session: Session) -> None:
    session.needs("run")
    async with environment(rig, session) as info:
        name = info["environment"]
        for end in (reset, stop):
            running = session.post("run", {"cmd": rig.words.sleep(300), "environment": name})
            await soon("the run lives", lambda: _has_one(session, name))
            await end(session, name)
            answer = await session.answer(running)
            if "error" in answer and end is stop:
                refused(answer, INVALID_STATE, "environment_stopped")
            else:
                reason = ending(answer.get("result", {}))[2]
                expect(reason == "killed", f"a run in flight is told as {answer}")


async def _has_one(session: Session, name: str) -> bool:
    return bool((await rows(session))[name].get("live") == 1)


@proves("ENV-RESET-RUN")
async def _reset_key(rig: Rig, session: Session) -> None:
    session.needs("run")
    async with environment(rig, session) as info:
        name = info["environment"]
        params = {"cmd": rig.words.sleep(300), "environment": name, "key": uuid.uuid4().hex}
        joined = [session.post("run", params) for _ in range(2)]
        await soon("the run lives", lambda: _has_one(session, name))
    for one in joined:
        answer = await session.answer(one)
        if "error" in answer:
            refused(answer, INVALID_STATE, "environment_stopped")


@contextmanager
def a_workspace() -> Iterator[Path]:
    """A file in a directory of this host that everybody may read."""
    with tempfile.TemporaryDirectory() as directory:
        kept = Path(directory, "kept")
        kept.write_text("kept\n", encoding="ascii")
        kept.chmod(0o644)
        kept.parent.chmod(0o755)
        yield kept


@proves("ENV-RESET-FILES")
async def _reset_files(rig: Rig, session: Session) -> None:
    token = uuid.uuid4().hex
    with a_workspace() as kept:
        workspace = {"source": str(kept.parent), "target": "/check-work"}
        async with environment(rig, session, workspace=workspace) as info:
            contained(info)
            name = info["environment"]
            await write(rig, session, name, token)
            await reset(session, name)
            expect(not await written(rig, session, name, token), "what was written is still there")
            told = await said(rig, session, name, "cat /check-work/kept")
            expect(told == "kept\n" and bool(existing((kept,))), f"what was in the workspace is {told!r}")


@proves("ENV-BUSY")
async def _busy(rig: Rig, session: Session) -> None:
    name = a_name()
    call = {"cmd": rig.words.true, "environment": name}
    busy = [post(rig, session, name), session.post("exec", call)]
    await begun(session, busy[0])
    again = [session.post("environment_reset", {"environment": name}) for _ in range(2)]
    busy += [*again, session.post("exec", call)]
    for one in busy[1:]:
        answer = await session.answer(one, START_MS)
        if "error" in answer:
            data = data_of(refused(answer, INVALID_STATE, "environment_busy"))
            expect(data.get("retryable") is True, f"it is not retryable: {answer}")
    expect((await stop(session, name)).get("result") == {}, "environment_stop failed")


# --- List and pool ---


def _seconds(row: dict[str, Any], name: str) -> float:
    told = row.get(name)
    if not isinstance(told, int | float):
        raise Broken(f"{name} is {told!r}")
    return told


@proves("ENV-LIST")
async def _list(rig: Rig, session: Session) -> None:
    before = time.time()
    async with environment(rig, session, lifetime_ms=600_000) as one, environment(rig, session) as two:
        first, second = one["environment"], two["environment"]
        await session.exec(rig.words.sleep(300), environment=first)
        told = await rows(session)
        row, other = told[first], told[second]
        expect((row.get("state"), row.get("live"), other.get("live", 0)) == ("running", 1, 0), f"the rows are {told}")
        started, ends = _seconds(row, "started_at"), _seconds(row, "ends_at")
        expect(before - 1 <= started <= time.time() + 1, f"started_at is {started}")
        expect(590 <= ends - started <= 600 + START_MS / 1000, f"ends_at is {ends}, after {started}")
        expect("ends_at" not in other, f"one without a lifetime has ends_at {other.get('ends_at')!r}")


@proves("ENV-POOL")
async def _pool(rig: Rig, common: Session) -> None:
    async with rig.started(environment=False, pool=[{**rig.options, "size": 1}]) as session:
        await _kinds_become(session, [1])
        for _ in range(2):
            async with environment(rig, session) as info:
                told, _ = await session.outputs(rig.words.echo("ready"), environment=info["environment"])
                expect(told == b"ready\n", f"a ready one said {told!r}")
        await session.rejects("pool_set", {"pool": [{"size": 1, "max_proceses": 7}]}, "$.pool[0].max_proceses")
        await _kinds_become(session, [1])
        await session.result("pool_set", {"pool": []})
        await _kinds_become(session, [])


async def _kinds_become(session: Session, ready: list[int]) -> None:
    async def are_ready() -> bool:
        told = (await session.result("health")).get("details", {}).get("pool", {}).get("kinds")
        return isinstance(told, list) and [kind.get("ready") for kind in told] == ready

    await soon(f"health shows {ready} ready ones", are_ready, limits.CHECK_ANSWER_MS)


@proves("ENV-RESET-RUN")
async def _run_is_whole(rig: Rig, session: Session) -> None:
    session.needs("run")
    async with environment(rig, session) as info:
        await reset(session, info["environment"])
        out, _ = outputs(await session.run(rig.words.echo("new"), environment=info["environment"]))
        expect(out == b"new\n", f"a run after a reset gave {out!r}")
