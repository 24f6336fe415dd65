"""Checks of how a process starts, and of why it does not."""

import asyncio
import uuid

from fastclaw import limits
from fastclaw.conformance.check_wire import INVALID_PARAMS
from fastclaw.conformance.left import leaves, must_be_seen, outlives
from fastclaw.conformance.outside import bearers, seen, soon
from fastclaw.conformance.registry import proves
from fastclaw.conformance.rig import Rig, data_of, drain, expect, refused
from fastclaw.conformance.wire import NotOffered

EXEC_FAILED = -32000
MISSING = "no-such-thing-here"
MANY = 32
TURNS = 100
OUTLIVED_MS, OUTLIVES_S = 1_000, 2
"""Time for the shell to end by itself, and over before what it leaves shows that it lives."""


@proves("X-RESULT")
async def result(rig: Rig) -> None:
    session = await rig.shared()
    processes = [await session.exec(rig.words.true) for _ in range(5)]
    names = {name for process in processes for name in (process.id, process.stdio_addr, process.stderr_addr)}
    expect(len(names) == 3 * len(processes), "an id or an address came twice")


@proves("X-LISTEN")
async def listening(rig: Rig) -> None:
    session = await rig.shared()
    for _ in range(5):
        process = await session.exec(rig.words.true)
        await process.stdio()
        await process.stderr()


@proves("X-MISSING")
async def missing_binary(rig: Rig) -> None:
    session = await rig.shared()
    for name in (MISSING, f"/bin/{MISSING}"):
        await session.error("exec", {"cmd": [name]}, EXEC_FAILED, "not_found")


@proves("X-NOT-A-PROGRAM")
async def directory_as_binary(rig: Rig) -> None:
    await (await rig.shared()).error("exec", {"cmd": [_directory(rig)]}, EXEC_FAILED)


def _directory(rig: Rig) -> str:
    if rig.words.directory is None:
        raise NotOffered(f"the {rig.words.name} vocabulary has no directories")
    return rig.words.directory


@proves("X-DIR")
async def working_dir(rig: Rig) -> None:
    session = await rig.shared()
    out, _ = await (await session.exec(rig.words.pwd, working_dir="/")).outputs()
    expect(out == b"/\n", f"in working_dir / pwd said {out!r}")
    root = session.welcome.get("workspace_root")
    if root is not None:
        out, _ = await (await session.exec(rig.words.pwd)).outputs()
        expect(out == f"{root}\n".encode(), f"with workspace_root {root} pwd said {out!r}")


@proves("X-DIR-RELATIVE")
async def relative_working_dir(rig: Rig) -> None:
    session = await rig.shared()
    default, _ = await (await session.exec(rig.words.pwd)).outputs()
    # However deep the default one is: above / there is only / (path_resolution(7)).
    for path, wanted in ((".", default), ("../" * MANY + "proc", b"/proc\n")):
        out, _ = await (await session.exec(rig.words.pwd, working_dir=path)).outputs()
        expect(out == wanted, f"in working_dir {path[-10:]} pwd said {out!r}, not {wanted!r}")
    params = {"cmd": rig.words.true, "working_dir": MISSING}
    await session.error("exec", params, EXEC_FAILED, "bad_working_dir")


@proves("X-DIR-MISSING")
async def missing_working_dir(rig: Rig) -> None:
    params = {"cmd": rig.words.true, "working_dir": f"{_directory(rig)}/{MISSING}"}
    await (await rig.shared()).error("exec", params, EXEC_FAILED, "bad_working_dir")


@proves("X-USER")
async def unknown_user(rig: Rig) -> None:
    await (await rig.shared()).error("exec", {"cmd": rig.words.true, "user": MISSING}, EXEC_FAILED, "unknown_user")


@proves("X-EMPTY")
async def empty_cmd(rig: Rig) -> None:
    session = await rig.shared()
    for cmd in ([], [""]):
        told = str(data_of(await session.error("exec", {"cmd": cmd}, INVALID_PARAMS)).get("path"))
        expect(told.startswith("$.cmd"), f"data.path is {told!r}")


@proves("X-NUL")
async def nul(rig: Rig) -> None:
    session = await rig.shared()
    for name, params in (
        ("$.cmd", {"cmd": ["a\0b"]}),
        ("$.cmd", {"cmd": [*rig.words.true, "a\0b"]}),
        ("$.env", {"cmd": rig.words.true, "env": {"A": "a\0b"}}),
        ("$.env", {"cmd": rig.words.true, "env": {"A\0": "b"}}),
        ("$.working_dir", {"cmd": rig.words.true, "working_dir": "/a\0b"}),
    ):
        told = str(data_of(await session.error("exec", params, INVALID_PARAMS)).get("path"))
        expect(told.startswith(name), f"data.path is {told!r}")


@proves("X-BIG")
async def big_value(rig: Rig) -> None:
    session = await rig.shared()
    value = "x" * limits.MIB
    answer = await session.wire.request("exec", {"cmd": rig.words.true, "env": {"BIG": value}})
    if "error" in answer:
        refused(answer, EXEC_FAILED, "too_long")
        return
    out, _ = await (await session.exec(rig.words.printenv("BIG"), env={"BIG": value})).outputs()
    expect(out == f"{value}\n".encode(), f"{len(out)} bytes of the value arrived")


@proves("X-ENV")
async def environment(rig: Rig) -> None:
    env = {**rig.options.get("env", {}), "CHECK_A": "options", "CHECK_B": "options"}
    async with rig.started(env=env) as session:
        expected = {"CHECK_A": "options", **session.welcome.get("env", {}), "CHECK_B": "request"}
        for name, value in expected.items():
            process = await session.exec(rig.words.printenv(name), env={"CHECK_B": "request"})
            out, _ = await process.outputs()
            expect(out == f"{value}\n".encode(), f"{name} is {out!r}, not {value!r}")


@proves("X-OWN-127")
async def own_127(rig: Rig) -> None:
    session = await rig.shared()
    for code in (126, 127):
        process = await session.exec(rig.words.exit(code))
        record = await process.wait()
        expect(record.get("exit_code") == code, f"a command that exits {code}: {record}")


@proves("X-NO-STDIN")
async def no_stdin(rig: Rig) -> None:
    process = await (await rig.shared()).exec(rig.words.cat, stdin=False)
    async with asyncio.timeout(limits.CHECK_SOON_MS / 1000):
        expect(await drain(await process.stdio()) == b"", "cat wrote something")


@proves("X-KEY")
async def idempotency(rig: Rig) -> None:
    session = await rig.shared()
    cmd, key = rig.words.echo("once"), rig.namespace()
    posted = [session.wire.post("exec", {"cmd": cmd, "key": key}) for _ in range(3)]
    ids = {(await session.wire.answer(request_id)).get("result", {}).get("process_id") for request_id in posted}
    first = await session.exec(cmd, key=key)
    out, _ = await first.outputs()
    expect(ids == {first.id}, f"one key, processes {ids | {first.id}}")
    expect(out == b"once\n", f"its output is {out!r}")


@proves("X-TIMEOUT")
async def timeout(rig: Rig) -> None:
    process = await (await rig.shared()).exec(rig.words.sleep(300), timeout_ms=200)
    stdio = await process.stdio()
    async with asyncio.timeout(limits.CHECK_SOON_MS / 1000):
        await drain(stdio)
    record = await process.wait()
    expect(record.get("reason") == "timeout", f"its record is {record}")


@proves("X-TIMEOUT")
async def timeout_of_what_has_ended(rig: Rig) -> None:
    session, token = await rig.shared(), uuid.uuid4().hex
    await must_be_seen(rig, session)
    await session.exec(rig.shell(outlives(token, OUTLIVES_S)), timeout_ms=OUTLIVED_MS)
    await soon("what was left behind outlives the timeout", lambda: bool(bearers(token)))


@proves("X-MERGE")
async def merged(rig: Rig) -> None:
    process = await (await rig.shared()).exec(rig.words.stderr("to stderr"), merge_stderr=True)
    stdio, stderr = await process.stdio(), await process.stderr()
    async with asyncio.timeout(limits.CHECK_SOON_MS / 1000):
        out, err = await drain(stdio), await drain(stderr)
    expect((out.rstrip(b"\n"), err) == (b"to stderr", b""), f"stdio gave {out!r}, stderr {err!r}")


@proves("X-MERGE")
async def merged_in_order(rig: Rig) -> None:
    session = await rig.shared()
    session.needs("separate_eof")
    script = f"i=0; while [ $i -lt {TURNS} ]; do echo out; echo err >&2; i=$((i+1)); done; read line"
    process = await session.exec(rig.shell(script), merge_stderr=True)
    stdio, stderr = await process.stdio(), await process.stderr()
    async with asyncio.timeout(limits.CHECK_SOON_MS / 1000):
        expect(await drain(stderr) == b"", "bytes came on stderr")
        stdio.write_eof()
        out = await drain(stdio)
    expect(out == b"out\nerr\n" * TURNS, f"{len(out)} bytes came, and they begin with {out[:100]!r}")


@proves("X-ORPHANS")
async def no_orphans(rig: Rig) -> None:
    session, token = await rig.shared(), uuid.uuid4().hex
    session.needs("kill_tree")
    process = await session.exec(rig.shell(f"{leaves(token)}read line"), orphans="kill")
    stdio = await process.stdio()
    await seen(token)
    stdio.write_eof()
    await soon("the orphan has ended with its command", lambda: not bearers(token))


@proves("T-LIMITS")
async def resource_limits(rig: Rig) -> None:
    session = await rig.shared()
    script = "ulimit -Sn; ulimit -Hn; ulimit -Sc; ulimit -Hc"
    out, _ = await (await session.exec(rig.shell(script), limits={"nofile": 77, "core": 0})).outputs()
    expect(out == b"77\n77\n0\n0\n", f"with nofile 77 and core 0 ulimit said {out!r}")
    script = "exec 3</dev/null 4</dev/null 5</dev/null; (: </dev/null) || echo held"
    out, _ = await (await session.exec(rig.shell(script), limits={"nofile": 6})).outputs()
    expect(out == b"held\n", f"a process with 6 descriptors of 6 could open one more: it said {out!r}")


@proves("T-LIMITS-NAME")
async def unknown_limit(rig: Rig) -> None:
    params = {"cmd": rig.words.true, "limits": {"nofiles": 100}}
    told = data_of(await (await rig.shared()).error("exec", params, INVALID_PARAMS))
    expect(str(told.get("path")).startswith("$.limits"), f"data.path is {told.get('path')!r}")
    expect(told.get("nearest") == "nofile", f"data.nearest is {told.get('nearest')!r}")


@proves("T-TEMPLATE-NAME")
async def unknown_template(rig: Rig) -> None:
    params = {"cmd": rig.words.true, "template": rig.namespace()}
    told = data_of(await (await rig.shared()).error("exec", params, INVALID_PARAMS))
    expect(told.get("path") == "$.template", f"data.path is {told.get('path')!r}")
