"""Checks of initialize, health, shutdown and every other way to end."""

import signal
import uuid
from typing import Any

from fastclaw import limits
from fastclaw.conformance.check_wire import INVALID_PARAMS
from fastclaw.conformance.outside import bearers, existing, soon
from fastclaw.conformance.registry import proves
from fastclaw.conformance.rig import Process, Rig, Session, data_of, expect, read_exactly, refused
from fastclaw.conformance.wire import Broken, NotOffered

INVALID_STATE = -32002
BOUNDS = ("max_processes", "max_starting", "queue_limit", "queue_timeout_ms")
END_MS = limits.CLIENT_SHUTDOWN_MS
UNDER_WAY = 100
DIES_WITHIN_MS = 1_000
"""Section 3, number 12."""


async def _ends_well(session: Session) -> None:
    code = await session.wire.exit_code(END_MS)
    expect(code == 0, f"the runtime ended with code {code}")


@proves("L-BEFORE")
async def before_initialize(rig: Rig) -> None:
    async with rig.fresh() as session:
        await session.error("exec", {"cmd": ["true"]}, INVALID_STATE, "not_initialized")
        await session.error("kill", {"process_id": "x"}, INVALID_STATE, "not_initialized")


@proves("L-BEFORE-HEALTH")
async def health_before_initialize(rig: Rig) -> None:
    async with rig.fresh() as session:
        health = await session.result("health")
        expect(health.get("status") == "unhealthy", f"health is {health}")
        expect("not initialized" in str(health.get("message")), f"health is {health}")


@proves("L-BEFORE-STOP")
async def shutdown_before_initialize(rig: Rig) -> None:
    async with rig.fresh() as session:
        expect(await session.result("shutdown") == {}, "shutdown did not answer {}")
        await _ends_well(session)


@proves("L-INIT")
async def initialize(rig: Rig) -> None:
    async with rig.started() as session:
        _is_welcome(session.welcome)


def _is_welcome(welcome: dict[str, Any]) -> None:
    server, capabilities = welcome.get("server"), welcome.get("capabilities")
    named = isinstance(server, dict) and isinstance(server.get("name"), str) and isinstance(server.get("version"), str)
    expect(named, f"`server` is {server!r}")
    listed = isinstance(capabilities, list) and all(isinstance(name, str) for name in capabilities)
    expect(listed, f"`capabilities` is {capabilities!r}")
    _has_optional_members(welcome)


def _has_optional_members(welcome: dict[str, Any]) -> None:
    env, root = welcome.get("env", {"A": "b"}), welcome.get("workspace_root", "/")
    strings = isinstance(env, dict) and all(isinstance(value, str) for value in env.values())
    expect(strings and bool(env), f"`env` is {env!r}; an empty one is left out")
    expect(
        isinstance(root, str) and root.startswith("/"), f"`workspace_root` is {root!r}; where there is none, left out"
    )


@proves("L-TWICE")
async def initialize_twice(rig: Rig) -> None:
    session = await rig.shared()
    await session.error("initialize", {"namespace": rig.namespace()}, INVALID_STATE, "already_initialized")
    expect("status" in await session.result("health"), "health failed afterwards")


@proves("L-NAMESPACE")
async def namespaces(rig: Rig) -> None:
    async with rig.fresh() as session:
        for params in ({}, {"namespace": ""}, {"namespace": 7}, {"namespace": "../up"}, {"namespace": "x" * 1000}):
            await session.error("initialize", params, INVALID_PARAMS)
        await session.initialize(rig.namespace(), rig.options)


@proves("L-OPTION")
async def unknown_option(rig: Rig) -> None:
    async with rig.fresh() as session:
        params = {"namespace": rig.namespace(), "options": {**rig.options, "max_proceses": 7}}
        data = data_of(await session.error("initialize", params, INVALID_PARAMS))
        expect(data.get("path") == "$.options.max_proceses", f"data.path is {data.get('path')!r}")
        expect(data.get("nearest") == "max_processes", f"data.nearest is {data.get('nearest')!r}")


@proves("L-HEALTH")
async def health(rig: Rig) -> None:
    told = await (await rig.shared()).result("health")
    expect(told.get("status") in ("healthy", "degraded", "unhealthy"), f"status is {told.get('status')!r}")
    missing = [name for name in BOUNDS if not _has_key(told.get("details"), name)]
    expect(not missing, f"`details` does not show {', '.join(missing)}: {told}")


def _has_key(value: Any, name: str) -> bool:
    return isinstance(value, dict) and (name in value or any(_has_key(member, name) for member in value.values()))


@proves("L-STOP")
async def shutdown(rig: Rig) -> None:
    for method in ("shutdown", "stop"):
        async with rig.started() as session:
            await session.exec(rig.words.sleep(300))
            expect(await session.result(method) == {}, f"{method} did not answer {{}}")
            await _ends_well(session)


@proves("L-EOF")
async def eof(rig: Rig) -> None:
    async with rig.fresh() as session:
        session.wire.close_stdin()
        await _ends_well(session)
    async with rig.started() as session:
        process = await session.exec(rig.words.sleep(300))
        for _ in range(UNDER_WAY):
            session.wire.post("exec", {"cmd": rig.words.sleep(300)})
        session.wire.close_stdin()
        await _ends_well(session)
        expect(not existing([process.stdio_addr]), "a socket is left")


@proves("L-TERM")
async def signals(rig: Rig) -> None:
    for signum in (signal.SIGTERM, signal.SIGINT):
        async with rig.started() as session:
            await session.exec(rig.words.sleep(300))
            session.wire.signal(signum)
            await _ends_well(session)


@proves("L-CLOSING")
async def during_shutdown(rig: Rig) -> None:
    stubborn = rig.shell('trap "" TERM; echo ready; while :; do sleep 1; done')
    async with rig.started() as session:
        stdio = await (await session.exec(stubborn)).stdio()
        await read_exactly(stdio, len("ready"))
        ending = session.wire.post("shutdown")
        late = session.wire.post("exec", {"cmd": rig.words.true})
        expect("result" in await session.wire.request("health"), "health was refused during shutdown")
        refused(await session.wire.answer(late), INVALID_STATE, "shutting_down")
        expect("result" in await session.wire.answer(ending), "shutdown failed")
        await _ends_well(session)


def _family(token: str) -> str:
    """A shell, a child of it in a session of its own, and an orphan; each has the token in its command line."""
    one = f"sleep 300; : {token}"
    return f"setsid sh -c '{one}' & (sh -c '{one}' &); echo ready; {one}"


async def begin_family(rig: Rig, session: Session, token: str) -> Process:
    """Start a process tree that can be seen from outside, if anything can."""
    process = await session.exec(rig.shell(_family(token)))
    await read_exactly(await process.stdio(), len("ready"))
    try:
        await soon("the tree is seen", lambda: len(bearers(token)) >= len(("shell", "session", "orphan")))
    except Broken as error:
        raise NotOffered("the processes cannot be seen from this host") from error
    return process


@proves("L-NOTHING-LEFT")
async def nothing_left(rig: Rig) -> None:
    token = uuid.uuid4().hex
    async with rig.started() as session:
        process = await begin_family(rig, session, token)
        await session.result("shutdown")
        await _ends_well(session)
        expect(not bearers(token), f"processes are left: {bearers(token)}")
        left = existing([process.stdio_addr, process.stderr_addr])
        expect(not left, f"sockets are left: {left}")


@proves("L-KILLED")
async def killed_outright(rig: Rig) -> None:
    token, namespace = uuid.uuid4().hex, rig.namespace()
    async with rig.started(namespace) as session:
        await begin_family(rig, session, token)
        session.wire.signal(signal.SIGKILL)
        await session.wire.exit_code(END_MS)
    try:
        await soon("everything ended", lambda: not bearers(token), DIES_WITHIN_MS)
    except Broken:
        async with rig.started(namespace):
            expect(not bearers(token), f"processes are left: {bearers(token)}")
