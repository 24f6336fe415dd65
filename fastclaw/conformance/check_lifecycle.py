"""Checks of the wire, of errors, and of initialize, health, shutdown and every other way to end."""

import functools
import signal
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from fastclaw import limits
from fastclaw.conformance.rig import Process, Rig, Session, bearers, existing, none_bears, seen, soon
from fastclaw.conformance.runner import proves
from fastclaw.conformance.wire import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    INVALID_STATE,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    Broken,
    data_of,
    expect,
    refused,
)
from fastclaw.errors import BY_CODE

# --- The wire ---


NOT_JSON = (b"{", b"nonsense", b'{"jsonrpc":"2.0","id":1,"method":"health"', b"{'id': 1}", b"\x00", b'"\xff"')
NO_REQUESTS: tuple[Any, ...] = (
    1,
    "health",
    None,
    True,
    {},
    {"id": 1, "method": "health"},
    {"jsonrpc": "1.0", "id": 1, "method": "health"},
    {"jsonrpc": "2.0", "id": 1},
    {"jsonrpc": "2.0", "id": 1, "method": 7},
)
GOOD_IDS: tuple[int | str, ...] = (
    *(0, 1, -1, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1),
    *("", "1", "a b", "ключ-🦀", "\u0000\n\\\"", "x" * 256),
)  # fmt: skip
BAD_IDS: tuple[Any, ...] = (None, 1.5, True, False, [], [1], {}, {"id": 1}, "x" * 257)
QUOTED = "\x01" * (limits.MAX_LINE_BYTES // 7)
"""A name that fills a line; quoted twice, it would fill two."""
BURST = 10_000


def _health(request_id: Any, **params: Any) -> bytes:
    return orjson.dumps({"jsonrpc": "2.0", "id": request_id, "method": "health", "params": params})


async def _goes_on(session: Session) -> None:
    others = await session.rest()
    expect(not others, f"one answer too many: {str(others[:1])[:200]}")


def _on_the_wire(promise_id: str) -> Callable[[Callable[[Session], Awaitable[None]]], object]:
    """As `proves`, for a check that has a session of its own, after which no answer may be left over."""

    def register(check: Callable[[Session], Awaitable[None]]) -> object:
        @functools.wraps(check)
        async def run(_: Rig, session: Session) -> None:
            await check(session)
            await _goes_on(session)

        return proves(promise_id, alone=True)(run)

    return register


async def _refused_alone(wire: Session, line: bytes, code: int, ids: tuple[Any, ...] = (None,)) -> None:
    """The line gets one error of this code under one of these ids."""
    wire.send(line + b"\n")
    answer = await wire.next()
    expect(isinstance(answer, dict), f"expected one error, got {str(answer)[:200]}")
    refused(answer, code)
    expect(answer["id"] in ids, f"the error has the id {answer['id']!r}")


@_on_the_wire("W-LINE")
async def _lines(session: Session) -> None:
    session.send(b"\n\r\n" + _health(1) + b"\r\n\n\n" + _health(2) + b"\n")
    for request_id in (1, 2):
        expect("result" in await session.answer(request_id), "health failed")


@_on_the_wire("W-PIECES")
async def _pieces(session: Session) -> None:
    for byte in _health(1) + b"\n":
        session.send(bytes([byte]))
    await session.answer(1)


@_on_the_wire("W-UTF8")
async def _utf8(session: Session) -> None:
    session.send('{"jsonrpc":"2.0","id":"ключ-🦀","method":"health"}\n'.encode())
    await session.answer("ключ-🦀")
    await _refused_alone(session, b'{"jsonrpc":"2.0","id":"\xff\xfe","method":"health"}', PARSE_ERROR)


@proves("W-LINE-MAX", alone=True)
async def _longest_line(rig: Rig, session: Session) -> None:
    room = limits.MAX_LINE_BYTES - len(_health("long", pad=""))
    session.send(_health("long", pad="x" * room) + b"\n")
    expect("result" in await session.answer("long"), "the line was refused")


@_on_the_wire("W-LINE-OVER")
async def _line_over_the_limit(session: Session) -> None:
    await _refused_alone(session, _health("over", pad="x" * (33 * limits.MIB)), INVALID_REQUEST)


@_on_the_wire("W-PARSE")
async def _not_json(session: Session) -> None:
    for line in NOT_JSON:
        await _refused_alone(session, line, PARSE_ERROR)


@_on_the_wire("W-INVALID")
async def _no_request(session: Session) -> None:
    for document in NO_REQUESTS:
        await _refused_alone(session, orjson.dumps(document), INVALID_REQUEST, (None, 1))


@_on_the_wire("W-ID-ECHO")
async def _ids_come_back(session: Session) -> None:
    for request_id in GOOD_IDS:
        session.post("health", id=request_id)
    for request_id in GOOD_IDS:
        expect("result" in await session.answer(request_id), f"the id {request_id!r} was refused")


@_on_the_wire("W-ID-BAD")
async def _bad_ids(session: Session) -> None:
    for request_id in BAD_IDS:
        await _refused_alone(session, _health(request_id), INVALID_REQUEST)


@_on_the_wire("W-ID-DUP")
async def _duplicate_ids(session: Session) -> None:
    session.send((_health("twin") + b"\n") * 2)
    for _ in range(2):
        await session.answer("twin")


@_on_the_wire("W-ANSWER-MAX")
async def _long_quotes(session: Session) -> None:
    await session.error(QUOTED, None, METHOD_NOT_FOUND)


@_on_the_wire("W-BURST")
async def _burst(session: Session) -> None:
    session.send(b"".join(_health(number) + b"\n" for number in range(BURST)))
    answers = Counter(answer["id"] for answer in [await session.next() for _ in range(BURST)])
    expect(answers == Counter(range(BURST)), "an id was answered twice or not at all")


@_on_the_wire("W-NOTIFY")
async def _notification(session: Session) -> None:
    for line in (
        b'{"jsonrpc":"2.0","method":"health"}',
        b'{"jsonrpc":"2.0","method":"no_such_method"}',
        b'{"jsonrpc":"2.0","method":"exec","params":{"cmd":5}}',
    ):
        session.send(line + b"\n")
    await _goes_on(session)


@proves("W-PIPELINE")
async def _pipelined(rig: Rig, session: Session) -> None:
    process = await session.exec(rig.words.sleep(300))
    waiting = session.post("wait", {"process_id": process.id})
    others = await session.rest()
    expect(not others, f"wait was answered for a process that runs: {others}")
    await process.kill(grace_ms=0)
    expect("result" in await session.answer(waiting), "the wait failed")


@_on_the_wire("W-BATCH")
async def _batch(session: Session) -> None:
    session.send(
        b'[{"jsonrpc":"2.0","id":1,"method":"health"},{"jsonrpc":"2.0","method":"health"},7,'
        b'{"jsonrpc":"2.0","id":"b","method":"no_such_method"}]\n'
    )
    answers = await session.next()
    expect(isinstance(answers, list), f"the answer is no batch: {str(answers)[:200]}")
    told = {(answer["id"], answer.get("error", {}).get("code")) for answer in answers}
    wanted = {(1, None), (None, INVALID_REQUEST), ("b", METHOD_NOT_FOUND)}
    expect(len(answers) == len(wanted) and told == wanted, f"the batch was answered with {answers}")


@_on_the_wire("W-BATCH-BAD")
async def _bad_batches(session: Session) -> None:
    await _refused_alone(session, b"[]", INVALID_REQUEST)
    many = b"[" + b",".join([_health(1)] * (limits.MAX_BATCH_ITEMS + 1)) + b"]"
    await _refused_alone(session, many, INVALID_REQUEST)


@_on_the_wire("W-BATCH-QUIET")
async def _batch_of_notifications(session: Session) -> None:
    session.send(b'[{"jsonrpc":"2.0","method":"health"},{"jsonrpc":"2.0","method":"health"}]\n')
    await _goes_on(session)


@proves("W-METHOD", alone=True)
async def _unknown_method(rig: Rig, session: Session) -> None:
    for method in ("no_such_method", "", "Health", "rpc.discover"):
        await session.error(method, None, METHOD_NOT_FOUND)


@proves("W-PARAMS")
async def _wrong_shapes(rig: Rig, session: Session) -> None:
    for method, params, path in (
        ("exec", {}, "$.cmd"),
        ("exec", {"cmd": "true"}, "$.cmd"),
        ("exec", {"cmd": [1]}, "$.cmd[0]"),
        ("exec", {"cmd": ["true"], "working_dir": 7}, "$.working_dir"),
        ("exec", {"cmd": ["true"], "env": {"A": 1}}, "$.env"),
        ("kill", {}, "$.process_id"),
        ("kill", {"process_id": 7}, "$.process_id"),
    ):
        await session.rejects(method, params, path)


@proves("W-PARAMS-NONE", alone=True)
async def _no_params(rig: Rig, session: Session) -> None:
    await session.result("health")
    session.send(b'{"jsonrpc":"2.0","id":"null","method":"health","params":null}\n')
    expect("result" in await session.answer("null"), "params null was refused")
    told = data_of(await session.error("health", [1], INVALID_PARAMS)).get("path")
    expect(told == "$", f"data.path is {told!r}")


@proves("W-PARAMS-MORE")
async def _unknown_keys(rig: Rig, session: Session) -> None:
    await session.result("health", {"no_such_key": 1})
    await session.exec(rig.words.true, no_such_key={"deep": [1]})


@proves("W-STDOUT")
async def _pure_stdout(rig: Rig, common: Session) -> None:
    async with rig.started() as session:
        await session.outputs(rig.words.echo("loud"))
        await session.outputs(rig.words.stderr("louder"))
        await session.request("exec", {"cmd": ["/no/such/program"]})
        await session.result("shutdown")
        others = await session.finished()
        expect(not others and not session.foul, f"stdout also carried {others or session.foul}")


# --- Errors ---


async def _samples(session: Session) -> list[dict[str, Any]]:
    """One error of each kind that any runtime can be brought to."""
    calls: list[tuple[str, Any]] = [
        ("no_such_method", None),
        ("exec", {"cmd": 5}),
        ("exec", {"cmd": ["/no/such/program"]}),
        ("kill", {"process_id": "no such process"}),
    ]
    errors = [(await session.request(method, params)).get("error") for method, params in calls]
    session.send(b"not json\n")
    errors.append((await session.answer(None)).get("error"))
    expect(all(isinstance(error, dict) for error in errors), f"a call that must fail did not: {errors}")
    return [error for error in errors if error is not None]


@proves("E-DATA")
async def _data_of_errors(rig: Rig, session: Session) -> None:
    for error in await _samples(session):
        data, known = data_of(error), BY_CODE.get(error.get("code", 0))
        expect(known is not None and data.get("kind") == known.kind, f"`kind` does not fit the code: {error}")
        expect(isinstance(data.get("reason"), str) and bool(data["reason"]), f"no `reason`: {error}")
        expect(data.get("fault") in ("caller", "engine", "runtime"), f"no `fault`: {error}")
        expect(isinstance(data.get("retryable"), bool), f"no `retryable`: {error}")


@proves("E-WORDS")
async def _words_of_errors(rig: Rig, session: Session) -> None:
    for error in await _samples(session):
        known = BY_CODE.get(error.get("code", 0))
        prefix = known.prefix if known else ""
        expect(str(error.get("message")).startswith(prefix), f"the message does not begin with {prefix!r}: {error}")


# --- Initialize, health, shutdown ---


BOUNDS = ("max_processes", "max_starting", "queue_limit", "queue_timeout_ms")
END_MS = limits.CLIENT_SHUTDOWN_MS
UNDER_WAY = 100
DIES_WITHIN_MS = 1_000
"""Section 3, number 12."""


async def _ends_well(session: Session) -> None:
    code = await session.exit_code(END_MS)
    expect(code == 0, f"the runtime ended with code {code}")


@proves("L-BEFORE", alone=True)
async def _before_initialize(rig: Rig, session: Session) -> None:
    await session.error("exec", {"cmd": ["true"]}, INVALID_STATE, "not_initialized")
    await session.error("kill", {"process_id": "x"}, INVALID_STATE, "not_initialized")


@proves("L-BEFORE-HEALTH", alone=True)
async def _health_before_initialize(rig: Rig, session: Session) -> None:
    health = await session.result("health")
    expect(health.get("status") == "unhealthy", f"health is {health}")
    expect("not initialized" in str(health.get("message")), f"health is {health}")


@proves("L-BEFORE-STOP", alone=True)
async def _shutdown_before_initialize(rig: Rig, session: Session) -> None:
    expect(await session.result("shutdown") == {}, "shutdown did not answer {}")
    await _ends_well(session)


@proves("L-INIT")
async def _initialize(rig: Rig, common: Session) -> None:
    async with rig.started() as session:
        _is_welcome(session.welcome)


def _is_welcome(welcome: dict[str, Any]) -> None:
    server, capabilities = welcome.get("server"), welcome.get("capabilities")
    named = isinstance(server, dict) and isinstance(server.get("name"), str) and isinstance(server.get("version"), str)
    expect(named, f"`server` is {server!r}")
    listed = isinstance(capabilities, list) and all(isinstance(name, str) for name in capabilities)
    expect(listed, f"`capabilities` is {capabilities!r}")
    env, root = welcome.get("env", {"A": "b"}), welcome.get("workspace_root", "/")
    strings = isinstance(env, dict) and all(isinstance(value, str) for value in env.values())
    expect(strings and bool(env), f"`env` is {env!r}; an empty one is left out")
    expect(
        isinstance(root, str) and root.startswith("/"), f"`workspace_root` is {root!r}; where there is none, left out"
    )


@proves("L-TWICE")
async def _initialize_twice(rig: Rig, session: Session) -> None:
    await session.error("initialize", {"namespace": rig.namespace()}, INVALID_STATE, "already_initialized")
    expect("status" in await session.result("health"), "health failed afterwards")


@proves("L-NAMESPACE", alone=True)
async def _namespaces(rig: Rig, session: Session) -> None:
    for params in ({}, {"namespace": ""}, {"namespace": 7}, {"namespace": "../up"}, {"namespace": "x" * 1000}):
        await session.error("initialize", params, INVALID_PARAMS)
    await session.initialize(rig.namespace(), rig.options)


@proves("L-OPTION", alone=True)
async def _unknown_option(rig: Rig, session: Session) -> None:
    params = {"namespace": rig.namespace(), "options": {**rig.options, "max_proceses": 7}}
    data = await session.rejects("initialize", params, "$.options.max_proceses")
    expect(data.get("nearest") == "max_processes", f"data.nearest is {data.get('nearest')!r}")


@proves("L-HEALTH")
async def _lifecycle_health(rig: Rig, session: Session) -> None:
    told = await session.result("health")
    expect(told.get("status") in ("healthy", "degraded", "unhealthy"), f"status is {told.get('status')!r}")
    missing = [name for name in BOUNDS if not _has_key(told.get("details"), name)]
    expect(not missing, f"`details` does not show {', '.join(missing)}: {told}")


def _has_key(value: Any, name: str) -> bool:
    return isinstance(value, dict) and (name in value or any(_has_key(member, name) for member in value.values()))


@proves("L-STOP")
async def _shutdown(rig: Rig, common: Session) -> None:
    for method in ("shutdown", "stop"):
        async with rig.started() as session:
            await session.exec(rig.words.sleep(300))
            expect(await session.result(method) == {}, f"{method} did not answer {{}}")
            await _ends_well(session)


@proves("L-EOF")
async def _eof(rig: Rig, common: Session) -> None:
    async with rig.fresh() as session:
        session.close_stdin()
        await _ends_well(session)
    async with rig.started() as session:
        process = await session.exec(rig.words.sleep(300))
        for _ in range(UNDER_WAY):
            session.post("exec", {"cmd": rig.words.sleep(300)})
        session.close_stdin()
        await _ends_well(session)
        expect(not existing(process.paths), "sockets are left")


@proves("L-TERM")
async def _signals(rig: Rig, common: Session) -> None:
    for signum in (signal.SIGTERM, signal.SIGINT):
        async with rig.started() as session:
            await session.exec(rig.words.sleep(300))
            session.signal(signum)
            await _ends_well(session)


@proves("L-CLOSING")
async def _during_shutdown(rig: Rig, common: Session) -> None:
    stubborn = rig.shell('trap "" TERM; echo ready; while :; do sleep 1; done')
    async with rig.started() as session:
        await session.ready(stubborn)
        ending = session.post("shutdown")
        late = session.post("exec", {"cmd": rig.words.true})
        expect("result" in await session.request("health"), "health was refused during shutdown")
        refused(await session.answer(late), INVALID_STATE, "shutting_down")
        expect("result" in await session.answer(ending), "shutdown failed")
        await _ends_well(session)


def _family(token: str) -> str:
    """A shell, a child of it in a session of its own, and an orphan; each has the token in its command line."""
    one = f"sleep 300; : {token}"
    return f"setsid sh -c '{one}' & (sh -c '{one}' &); echo ready; {one}"


async def begin_family(rig: Rig, session: Session, token: str, **params: Any) -> Process:
    """Start a process tree that can be seen from outside, if anything can."""
    process, _ = await session.ready(rig.shell(_family(token)), **params)
    await seen(token, len(("shell", "session", "orphan")))
    return process


@proves("L-NOTHING-LEFT")
async def _nothing_left(rig: Rig, common: Session) -> None:
    token = uuid.uuid4().hex
    async with rig.started() as session:
        process = await begin_family(rig, session, token)
        await session.result("shutdown")
        await _ends_well(session)
        none_bears(token)
        left = existing(process.paths)
        expect(not left, f"sockets are left: {left}")


@proves("L-KILLED")
async def _killed_outright(rig: Rig, common: Session) -> None:
    token, namespace = uuid.uuid4().hex, rig.namespace()
    async with rig.started(namespace) as session:
        await begin_family(rig, session, token)
        session.signal(signal.SIGKILL)
        await session.exit_code(END_MS)
    try:
        await soon("everything ended", lambda: not bearers(token), DIES_WITHIN_MS)
    except Broken:
        async with rig.started(namespace):
            none_bears(token)
