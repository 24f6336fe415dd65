"""Checks of how a process starts, why it does not, how it is killed, and what is told of it."""

import signal
import time
import uuid
from typing import Any

from fastclaw import limits
from fastclaw.conformance.check_lifecycle import begin_family
from fastclaw.conformance.rig import (
    Rig,
    Session,
    bearers,
    drain,
    drain_soon,
    leaves,
    must_be_seen,
    none_bears,
    outlives,
    seen,
    soon,
)
from fastclaw.conformance.runner import proves
from fastclaw.conformance.wire import EXEC_FAILED, INVALID_STATE, NotOffered, ending, expect, refused

MISSING = "no-such-thing-here"
MANY = 32
TURNS = 100
OUTLIVED_MS, OUTLIVES_S = 1_000, 2
"""Time for the shell to end by itself, and over before what it leaves shows that it lives."""


@proves("X-RESULT")
async def _result(rig: Rig, session: Session) -> None:
    processes = [await session.exec(rig.words.true) for _ in range(5)]
    names = {name for process in processes for name in (process.id, process.stdio_addr, process.stderr_addr)}
    expect(len(names) == 3 * len(processes), "an id or an address came twice")


@proves("X-LISTEN")
async def _listening(rig: Rig, session: Session) -> None:
    for _ in range(5):
        process = await session.exec(rig.words.true)
        await process.stdio()
        await process.stderr()


@proves("X-MISSING")
async def _missing_binary(rig: Rig, session: Session) -> None:
    for name in (MISSING, f"/bin/{MISSING}"):
        await session.error("exec", {"cmd": [name]}, EXEC_FAILED, "not_found")


@proves("X-NOT-A-PROGRAM")
async def _directory_as_binary(rig: Rig, session: Session) -> None:
    await session.error("exec", {"cmd": [_directory(rig)]}, EXEC_FAILED)


def _directory(rig: Rig) -> str:
    if rig.words.directory is None:
        raise NotOffered(f"the {rig.words.name} vocabulary has no directories")
    return rig.words.directory


@proves("X-DIR")
async def _working_dir(rig: Rig, session: Session) -> None:
    out, _ = await session.outputs(rig.words.pwd, working_dir="/")
    expect(out == b"/\n", f"in working_dir / pwd said {out!r}")
    root = session.welcome.get("workspace_root")
    if root is not None:
        out, _ = await session.outputs(rig.words.pwd)
        expect(out == f"{root}\n".encode(), f"with workspace_root {root} pwd said {out!r}")


@proves("X-DIR-RELATIVE")
async def _relative_working_dir(rig: Rig, session: Session) -> None:
    default, _ = await session.outputs(rig.words.pwd)
    # However deep the default one is: above / there is only / (path_resolution(7)).
    for path, wanted in ((".", default), ("../" * MANY + "proc", b"/proc\n")):
        out, _ = await session.outputs(rig.words.pwd, working_dir=path)
        expect(out == wanted, f"in working_dir {path[-10:]} pwd said {out!r}, not {wanted!r}")
    await session.error("exec", {"cmd": rig.words.true, "working_dir": MISSING}, EXEC_FAILED, "bad_working_dir")


@proves("X-DIR-MISSING")
async def _missing_working_dir(rig: Rig, session: Session) -> None:
    params = {"cmd": rig.words.true, "working_dir": f"{_directory(rig)}/{MISSING}"}
    await session.error("exec", params, EXEC_FAILED, "bad_working_dir")


@proves("X-USER")
async def _unknown_user(rig: Rig, session: Session) -> None:
    await session.error("exec", {"cmd": rig.words.true, "user": MISSING}, EXEC_FAILED, "unknown_user")


@proves("X-EMPTY")
async def _empty_cmd(rig: Rig, session: Session) -> None:
    for cmd in ([], [""]):
        await session.rejects("exec", {"cmd": cmd}, "$.cmd")


@proves("X-NUL")
async def _nul(rig: Rig, session: Session) -> None:
    for name, params in (
        ("$.cmd", {"cmd": ["a\0b"]}),
        ("$.cmd", {"cmd": [*rig.words.true, "a\0b"]}),
        ("$.env", {"cmd": rig.words.true, "env": {"A": "a\0b"}}),
        ("$.env", {"cmd": rig.words.true, "env": {"A\0": "b"}}),
        ("$.working_dir", {"cmd": rig.words.true, "working_dir": "/a\0b"}),
    ):
        await session.rejects("exec", params, name)


@proves("X-BIG")
async def _big_value(rig: Rig, session: Session) -> None:
    value = "x" * limits.MIB
    answer = await session.request("exec", {"cmd": rig.words.true, "env": {"BIG": value}})
    if "error" in answer:
        refused(answer, EXEC_FAILED, "too_long")
        return
    out, _ = await session.outputs(rig.words.printenv("BIG"), env={"BIG": value})
    expect(out == f"{value}\n".encode(), f"{len(out)} bytes of the value arrived")


@proves("X-ENV")
async def _environment(rig: Rig, common: Session) -> None:
    env = {**rig.options.get("env", {}), "CHECK_A": "options", "CHECK_B": "options"}
    async with rig.started(env=env) as session:
        expected = {"CHECK_A": "options", **session.welcome.get("env", {}), "CHECK_B": "request"}
        for name, value in expected.items():
            out, _ = await session.outputs(rig.words.printenv(name), env={"CHECK_B": "request"})
            expect(out == f"{value}\n".encode(), f"{name} is {out!r}, not {value!r}")


@proves("X-OWN-127")
async def _own_127(rig: Rig, session: Session) -> None:
    for code in (126, 127):
        record = await session.record(rig.words.exit(code))
        expect(record.get("exit_code") == code, f"a command that exits {code}: {record}")


@proves("X-NO-STDIN")
async def _no_stdin(rig: Rig, session: Session) -> None:
    process = await session.exec(rig.words.cat, stdin=False)
    expect(await drain_soon(await process.stdio()) == [b""], "cat wrote something")


@proves("X-KEY")
async def _idempotency(rig: Rig, session: Session) -> None:
    cmd, key = rig.words.echo("once"), rig.namespace()
    posted = [session.post("exec", {"cmd": cmd, "key": key}) for _ in range(3)]
    ids = {(await session.answer(request_id)).get("result", {}).get("process_id") for request_id in posted}
    first = await session.exec(cmd, key=key)
    out, _ = await first.outputs()
    expect(ids == {first.id}, f"one key, processes {ids | {first.id}}")
    expect(out == b"once\n", f"its output is {out!r}")


@proves("X-TIMEOUT")
async def _timeout(rig: Rig, session: Session) -> None:
    process = await session.exec(rig.words.sleep(300), timeout_ms=200)
    await drain_soon(await process.stdio())
    record = await process.wait()
    expect(record.get("reason") == "timeout", f"its record is {record}")


@proves("X-TIMEOUT")
async def _timeout_of_what_has_ended(rig: Rig, session: Session) -> None:
    token = uuid.uuid4().hex
    await must_be_seen(rig, session)
    await session.exec(rig.shell(outlives(token, OUTLIVES_S)), timeout_ms=OUTLIVED_MS)
    await soon("what was left behind outlives the timeout", lambda: bool(bearers(token)))


@proves("X-MERGE")
async def _merged(rig: Rig, session: Session) -> None:
    process = await session.exec(rig.words.stderr("to stderr"), merge_stderr=True)
    out, err = await drain_soon(await process.stdio(), await process.stderr())
    expect((out.rstrip(b"\n"), err) == (b"to stderr", b""), f"stdio gave {out!r}, stderr {err!r}")


@proves("X-MERGE")
async def _merged_in_order(rig: Rig, session: Session) -> None:
    session.needs("separate_eof")
    script = f"i=0; while [ $i -lt {TURNS} ]; do echo out; echo err >&2; i=$((i+1)); done; read line"
    process = await session.exec(rig.shell(script), merge_stderr=True)
    stdio, stderr = await process.stdio(), await process.stderr()
    expect(await drain_soon(stderr) == [b""], "bytes came on stderr")
    stdio.write_eof()
    [out] = await drain_soon(stdio)
    expect(out == b"out\nerr\n" * TURNS, f"{len(out)} bytes came, and they begin with {out[:100]!r}")


@proves("X-ORPHANS")
async def _no_orphans(rig: Rig, session: Session) -> None:
    token = uuid.uuid4().hex
    session.needs("kill_tree")
    process = await session.exec(rig.shell(f"{leaves(token)}read line"), orphans="kill")
    stdio = await process.stdio()
    await seen(token)
    stdio.write_eof()
    await soon("the orphan has ended with its command", lambda: not bearers(token))


@proves("T-LIMITS")
async def _resource_limits(rig: Rig, session: Session) -> None:
    script = "ulimit -Sn; ulimit -Hn; ulimit -Sc; ulimit -Hc"
    out, _ = await session.outputs(rig.shell(script), limits={"nofile": 77, "core": 0})
    expect(out == b"77\n77\n0\n0\n", f"with nofile 77 and core 0 ulimit said {out!r}")
    script = "exec 3</dev/null 4</dev/null 5</dev/null; (: </dev/null) || echo held"
    out, _ = await session.outputs(rig.shell(script), limits={"nofile": 6})
    expect(out == b"held\n", f"a process with 6 descriptors of 6 could open one more: it said {out!r}")


@proves("T-LIMITS-NAME")
async def _unknown_limit(rig: Rig, session: Session) -> None:
    params = {"cmd": rig.words.true, "limits": {"nofiles": 100}}
    nearest = (await session.rejects("exec", params, "$.limits")).get("nearest")
    expect(nearest == "nofile", f"data.nearest is {nearest!r}")


@proves("T-TEMPLATE-NAME")
async def _unknown_template(rig: Rig, session: Session) -> None:
    await session.rejects("exec", {"cmd": rig.words.true, "template": rig.namespace()}, "$.template")


# --- Kill ---


GRACE_MS = 300
LONG_GRACE_MS = 20_000
STUBBORN = 'trap "" TERM; echo ready; while :; do sleep 1; done'
TIDY = 'trap "echo bye; exit 7" TERM; echo ready; while :; do sleep 300 & wait; done'


@proves("K-KILL")
async def _kill(rig: Rig, session: Session) -> None:
    process = await session.exec(rig.words.sleep(300))
    stdio, stderr = await process.stdio(), await process.stderr()
    expect(await process.kill() == {}, "kill did not answer {}")
    expect(await drain_soon(stdio, stderr) == [b"", b""], "bytes came from nowhere")


@proves("K-TERM")
async def _term_first(rig: Rig, session: Session) -> None:
    process, stdio = await session.ready(rig.shell(TIDY))
    begun = time.monotonic()
    await process.kill(grace_ms=LONG_GRACE_MS)
    took_ms = (time.monotonic() - begun) * 1000
    expect(await drain(stdio) == b"bye\n", "the process could not tidy up")
    expect(took_ms < LONG_GRACE_MS, "kill waited for the end of the grace time, though the process had ended")


@proves("K-HARD")
async def _hard(rig: Rig, session: Session) -> None:
    for grace_ms in (GRACE_MS, 0):
        process, _ = await session.ready(rig.shell(STUBBORN))
        begun = time.monotonic()
        await process.kill(grace_ms=grace_ms)
        took_ms = (time.monotonic() - begun) * 1000
        # Half of it: loops round their timers.
        expect(grace_ms / 2 <= took_ms < grace_ms + limits.CHECK_SOON_MS, f"grace {grace_ms} ms, took {took_ms:.0f} ms")


@proves("K-TREE")
async def _tree(rig: Rig, session: Session) -> None:
    token = uuid.uuid4().hex
    process = await begin_family(rig, session, token)
    await process.kill(grace_ms=GRACE_MS)
    none_bears(token)


@proves("K-ORPHANS")
async def _orphans(rig: Rig, session: Session) -> None:
    token = uuid.uuid4().hex
    process, _ = await session.ready(rig.shell(f"setsid sh -c 'sleep 300; : {token}' & echo ready"))
    await seen(token)
    await process.wait(timeout_ms=limits.CHECK_SOON_MS)
    expect(await process.kill() == {}, "kill did not answer {}")
    none_bears(token)


@proves("K-ENDED")
async def _ended(rig: Rig, session: Session) -> None:
    process = await session.exec(rig.words.echo("ended"))
    await process.outputs()
    for _ in range(2):
        expect(await process.kill() == {}, "kill did not answer {}")


@proves("K-UNKNOWN")
async def _unknown(rig: Rig, session: Session) -> None:
    offered = {"kill", "wait", "signal"} & {"kill", *session.welcome.get("capabilities", [])}
    for method in sorted(offered):
        params = {"process_id": "no such process", **({"signal": 15} if method == "signal" else {})}
        await session.error(method, params, INVALID_STATE, "unknown_process")


# --- Records, the list, signals ---


REASONS = ("exited", "signaled", "killed", "timeout", "oom", "container_gone", "unknown")
BLOCKING_BYTES = 4 * limits.MIB
"""More than there is room for on the way, with any engine."""
USAGE = ("user_us", "system_us", "max_rss_kb")
_BUSY_BYTES = 8 * limits.MIB
"""What a command writes so that it takes CPU time that can be told from none."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@proves("R-CODE")
async def _exit_codes(rig: Rig, session: Session) -> None:
    for code in (0, 1, 42, 125, 128, 137, 143, 255):
        record = await session.record(rig.words.exit(code))
        told = (*ending(record), record.get("signal"))
        expect(told == ("exited", code, "exited", None), f"exit {code} gave {record}")


@proves("R-SIGNAL")
async def _signaled(rig: Rig, session: Session) -> None:
    for signum in (signal.SIGKILL, signal.SIGTERM):
        record = await session.record(rig.shell(f"kill -{signum.name[3:]} $$"))
        told = (record.get("exit_code"), record.get("signal"), record.get("reason"))
        expect(told == (None, int(signum), "signaled"), f"{signum.name} gave {record}")


@proves("R-KILLED")
async def _killed(rig: Rig, session: Session) -> None:
    process = await session.exec(rig.words.sleep(300))
    await process.kill()
    record = await process.wait()
    expect((record.get("state"), record.get("reason")) == ("exited", "killed"), f"after kill: {record}")


@proves("R-KILLED")
async def _killed_and_tidy(rig: Rig, session: Session) -> None:
    process, _ = await session.ready(rig.shell(TIDY))
    await process.kill(grace_ms=limits.CHECK_SOON_MS)
    record = await process.wait()
    expect((record.get("exit_code"), record.get("reason")) == (7, "killed"), f"after kill: {record}")


@proves("R-RUNNING")
async def _running(rig: Rig, session: Session) -> None:
    process = await session.exec(rig.words.sleep(300))
    for timeout_ms in (0, 100):
        record = await process.wait(timeout_ms=timeout_ms)
        expect((record.get("process_id"), record.get("state")) == (process.id, "running"), f"wait gave {record}")


@proves("R-AGAIN")
async def _again(rig: Rig, session: Session) -> None:
    process = await session.exec(rig.words.exit(3))
    posted = [session.post("wait", {"process_id": process.id}) for _ in range(10)]
    records = [(await session.answer(request_id)).get("result", {}) for request_id in posted]
    records.append(await process.wait())
    await process.outputs()
    records.append(await process.wait())
    expect(set(map(ending, records)) == {("exited", 3, "exited")}, f"the waits gave {records}")


@proves("R-SHAPE")
async def _shape(rig: Rig, session: Session) -> None:
    has_shape(await session.record(rig.words.true))


def has_shape(record: dict[str, Any]) -> None:
    """Raise `Broken` where a field of the exit record is not there, or not of its kind."""
    missing = {"process_id", "state", "exit_code", "signal", "reason", "timings", "usage"} - set(record)
    expect(not missing, f"the record lacks {sorted(missing)}")
    expect(record["reason"] in REASONS, f"reason is {record['reason']!r}")
    timings = record["timings"]
    expect(isinstance(timings, dict) and all(map(_is_number, timings.values())), f"timings are {timings}")
    expect(record["usage"] is None or isinstance(record["usage"], dict), f"usage is {record['usage']}")


@proves("R-USAGE")
async def _usage(rig: Rig, session: Session) -> None:
    told = []
    for command in (rig.words.true, rig.words.out(_BUSY_BYTES)):
        process = await session.exec(command)
        await process.outputs()
        usage = (await process.wait()).get("usage") or {}
        expect(all(_is_number(usage.get(name)) for name in USAGE), f"usage of {command} is {usage}")
        told.append(usage)
    idle, busy = (usage["user_us"] + usage["system_us"] for usage in told)
    expect(busy > idle, f"a command that does nothing takes {idle} us of CPU, and one that writes a lot {busy}")
    expect(all(usage["max_rss_kb"] > 0 for usage in told), f"max_rss_kb is {[usage['max_rss_kb'] for usage in told]}")


@proves("T-LIST")
async def _listing(rig: Rig, session: Session) -> None:
    live, ended = await session.exec(rig.words.sleep(300)), await session.exec(rig.words.exit(3))
    await ended.outputs()
    await session.result("wait", {"process_id": ended.id})
    rows = await session.listed()
    expect(rows.get(live.id, {}).get("state") == "running", f"the live one is {rows.get(live.id)}")
    row = rows.get(ended.id, {})
    expect((row.get("state"), row.get("cmd")) == ("exited", rig.words.exit(3)), f"the ended one is {row}")
    expect(abs(time.time() - row.get("started_at", 0)) < limits.CHECK_MS / 1000, f"started_at is {row}")


@proves("T-LIST-PAGES")
async def _pages(rig: Rig, session: Session) -> None:
    started = [(await session.exec(rig.words.sleep(300))).id for _ in range(4)]
    seen: list[str] = []
    params: dict[str, Any] = {"limit": 3}
    while True:
        page = await session.result("list", params)
        ids = [row["process_id"] for row in page["processes"]]
        expect(0 < len(ids) <= 3, f"a page of at most 3 shows {ids}")
        seen += ids
        if "next" not in page:
            break
        params = {"limit": 3, "after": page["next"]}
        expect(len(seen) < limits.KEEP_EXITED, "the pages have no end")
    expect(len(set(seen)) == len(seen), f"some are on two pages: {seen}")
    expect(set(started) <= set(seen), f"{started} are not all on the pages: {seen}")


@proves("T-LIST-CUT")
async def _long_commands(rig: Rig, session: Session) -> None:
    cmd = [*rig.words.true, *(str(number) * 20_000 for number in range(6))]
    process = await session.exec(cmd)
    row = (await session.listed()).get(process.id, {})
    shown = row.get("cmd", [])
    expect(
        sum(map(len, shown)) < 20_000 and row.get("cmd_truncated") is True, f"its cmd is shown as {len(shown)} words"
    )
    expect(bool(shown) and "\0".join(cmd).startswith("\0".join(shown)), "what is shown is not its beginning")


@proves("T-LIST-BLOCKED")
async def _blocked_outputs(rig: Rig, session: Session) -> None:
    process = await session.exec(rig.words.out(BLOCKING_BYTES))

    async def blocked() -> object:
        return (await session.listed())[process.id].get("blocked")

    async def is_blocked() -> bool:
        return await blocked() is not None

    await soon("an output that nobody reads is called blocked", is_blocked)
    seen = await blocked()
    expect(seen == ["stdout"], f"of an output that nobody reads, list says {seen}")
    out, _ = await process.outputs()
    expect(len(out) == BLOCKING_BYTES, f"{len(out)} bytes came")
    expect(await blocked() is None, "what has been read is still called blocked")


@proves("T-SIGNAL")
async def _signals(rig: Rig, session: Session) -> None:
    for signum in (int(signal.SIGTERM), "KILL", "SIGTERM"):
        process = await session.exec(rig.words.sleep(300))
        answer = await session.result("signal", {"process_id": process.id, "signal": signum})
        expect(answer == {}, f"signal answered {answer}")
        await process.outputs()


@proves("T-SIGNAL-GROUP")
async def _group_signals(rig: Rig, session: Session) -> None:
    script = "trap : INT; sh -c 'echo ready; exec sleep 300'; echo ended $?"
    process, stdio = await session.ready(rig.shell(script))
    await session.result("signal", {"process_id": process.id, "signal": "INT", "group": True})
    [said] = await drain_soon(stdio)
    expect(said == b"ended 130\n", f"the shell goes on with {said!r}")
