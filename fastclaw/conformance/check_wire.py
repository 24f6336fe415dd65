"""Checks of framing and of what counts as a request. All but one need no environment."""

from collections import Counter
from typing import Any

import orjson

from fastclaw import limits
from fastclaw.conformance.registry import proves
from fastclaw.conformance.rig import Rig, Session, data_of, expect, refused
from fastclaw.conformance.wire import Wire

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS = -32700, -32600, -32601, -32602

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
    others = await session.wire.rest()
    expect(not others, f"one answer too many: {str(others[:1])[:200]}")


async def _refused_alone(wire: Wire, line: bytes, code: int, ids: tuple[Any, ...] = (None,)) -> None:
    """The line gets one error of this code under one of these ids."""
    wire.send(line + b"\n")
    answer = await wire.next()
    expect(isinstance(answer, dict), f"expected one error, got {str(answer)[:200]}")
    refused(answer, code)
    expect(answer["id"] in ids, f"the error has the id {answer['id']!r}")


@proves("W-LINE")
async def lines(rig: Rig) -> None:
    async with rig.fresh() as session:
        session.wire.send(b"\n\r\n" + _health(1) + b"\r\n\n\n" + _health(2) + b"\n")
        for request_id in (1, 2):
            expect("result" in await session.wire.answer(request_id), "health failed")
        await _goes_on(session)


@proves("W-PIECES")
async def pieces(rig: Rig) -> None:
    async with rig.fresh() as session:
        for byte in _health(1) + b"\n":
            session.wire.send(bytes([byte]))
        await session.wire.answer(1)
        await _goes_on(session)


@proves("W-UTF8")
async def utf8(rig: Rig) -> None:
    async with rig.fresh() as session:
        session.wire.send('{"jsonrpc":"2.0","id":"ключ-🦀","method":"health"}\n'.encode())
        await session.wire.answer("ключ-🦀")
        await _refused_alone(session.wire, b'{"jsonrpc":"2.0","id":"\xff\xfe","method":"health"}', PARSE_ERROR)
        await _goes_on(session)


@proves("W-LINE-MAX")
async def longest_line(rig: Rig) -> None:
    async with rig.fresh() as session:
        room = limits.MAX_LINE_BYTES - len(_health("long", pad=""))
        session.wire.send(_health("long", pad="x" * room) + b"\n")
        expect("result" in await session.wire.answer("long"), "the line was refused")


@proves("W-LINE-OVER")
async def line_over_the_limit(rig: Rig) -> None:
    async with rig.fresh() as session:
        await _refused_alone(session.wire, _health("over", pad="x" * (33 * limits.MIB)), INVALID_REQUEST)
        await _goes_on(session)


@proves("W-PARSE")
async def not_json(rig: Rig) -> None:
    async with rig.fresh() as session:
        for line in NOT_JSON:
            await _refused_alone(session.wire, line, PARSE_ERROR)
        await _goes_on(session)


@proves("W-INVALID")
async def no_request(rig: Rig) -> None:
    async with rig.fresh() as session:
        for document in NO_REQUESTS:
            await _refused_alone(session.wire, orjson.dumps(document), INVALID_REQUEST, (None, 1))
        await _goes_on(session)


@proves("W-ID-ECHO")
async def ids_come_back(rig: Rig) -> None:
    async with rig.fresh() as session:
        for request_id in GOOD_IDS:
            session.wire.post("health", id=request_id)
        for request_id in GOOD_IDS:
            expect("result" in await session.wire.answer(request_id), f"the id {request_id!r} was refused")
        await _goes_on(session)


@proves("W-ID-BAD")
async def bad_ids(rig: Rig) -> None:
    async with rig.fresh() as session:
        for request_id in BAD_IDS:
            await _refused_alone(session.wire, _health(request_id), INVALID_REQUEST)
        await _goes_on(session)


@proves("W-ID-DUP")
async def duplicate_ids(rig: Rig) -> None:
    async with rig.fresh() as session:
        session.wire.send((_health("twin") + b"\n") * 2)
        for _ in range(2):
            await session.wire.answer("twin")
        await _goes_on(session)


@proves("W-ANSWER-MAX")
async def long_quotes(rig: Rig) -> None:
    async with rig.fresh() as session:
        await session.error(QUOTED, None, METHOD_NOT_FOUND)
        await _goes_on(session)


@proves("W-BURST")
async def burst(rig: Rig) -> None:
    async with rig.fresh() as session:
        session.wire.send(b"".join(_health(number) + b"\n" for number in range(BURST)))
        answers = Counter(answer["id"] for answer in await session.wire.collect(BURST))
        expect(answers == Counter(range(BURST)), "an id was answered twice or not at all")
        await _goes_on(session)


@proves("W-NOTIFY")
async def notification(rig: Rig) -> None:
    async with rig.fresh() as session:
        for line in (
            b'{"jsonrpc":"2.0","method":"health"}',
            b'{"jsonrpc":"2.0","method":"no_such_method"}',
            b'{"jsonrpc":"2.0","method":"exec","params":{"cmd":5}}',
        ):
            session.wire.send(line + b"\n")
        await _goes_on(session)
        await _goes_on(session)


@proves("W-PIPELINE")
async def pipelined(rig: Rig) -> None:
    session = await rig.shared()
    process = await session.exec(rig.words.sleep(300))
    waiting = session.wire.post("wait", {"process_id": process.id})
    others = await session.wire.rest()
    expect(not others, f"wait was answered for a process that runs: {others}")
    await process.kill(grace_ms=0)
    expect("result" in await session.wire.answer(waiting), "the wait failed")


@proves("W-BATCH")
async def batch(rig: Rig) -> None:
    async with rig.fresh() as session:
        session.wire.send(
            b'[{"jsonrpc":"2.0","id":1,"method":"health"},{"jsonrpc":"2.0","method":"health"},7,'
            b'{"jsonrpc":"2.0","id":"b","method":"no_such_method"}]\n'
        )
        answers = await session.wire.next()
        expect(isinstance(answers, list), f"the answer is no batch: {str(answers)[:200]}")
        told = {(answer["id"], answer.get("error", {}).get("code")) for answer in answers}
        wanted = {(1, None), (None, INVALID_REQUEST), ("b", METHOD_NOT_FOUND)}
        expect(len(answers) == len(wanted) and told == wanted, f"the batch was answered with {answers}")
        await _goes_on(session)


@proves("W-BATCH-BAD")
async def bad_batches(rig: Rig) -> None:
    async with rig.fresh() as session:
        await _refused_alone(session.wire, b"[]", INVALID_REQUEST)
        many = b"[" + b",".join([_health(1)] * (limits.MAX_BATCH_ITEMS + 1)) + b"]"
        await _refused_alone(session.wire, many, INVALID_REQUEST)
        await _goes_on(session)


@proves("W-BATCH-QUIET")
async def batch_of_notifications(rig: Rig) -> None:
    async with rig.fresh() as session:
        session.wire.send(b'[{"jsonrpc":"2.0","method":"health"},{"jsonrpc":"2.0","method":"health"}]\n')
        await _goes_on(session)
        await _goes_on(session)


@proves("W-METHOD")
async def unknown_method(rig: Rig) -> None:
    async with rig.fresh() as session:
        for method in ("no_such_method", "", "Health", "rpc.discover"):
            await session.error(method, None, METHOD_NOT_FOUND)


@proves("W-PARAMS")
async def wrong_shapes(rig: Rig) -> None:
    session = await rig.shared()
    for method, params, path in (
        ("exec", {}, "$.cmd"),
        ("exec", {"cmd": "true"}, "$.cmd"),
        ("exec", {"cmd": [1]}, "$.cmd[0]"),
        ("exec", {"cmd": ["true"], "working_dir": 7}, "$.working_dir"),
        ("exec", {"cmd": ["true"], "env": {"A": 1}}, "$.env"),
        ("kill", {}, "$.process_id"),
        ("kill", {"process_id": 7}, "$.process_id"),
    ):
        told = data_of(await session.error(method, params, INVALID_PARAMS)).get("path")
        expect(isinstance(told, str) and told.startswith(path), f"data.path of {method} {params} is {told!r}")


@proves("W-PARAMS-NONE")
async def no_params(rig: Rig) -> None:
    async with rig.fresh() as session:
        await session.result("health")
        session.wire.send(b'{"jsonrpc":"2.0","id":"null","method":"health","params":null}\n')
        expect("result" in await session.wire.answer("null"), "params null was refused")
        told = data_of(await session.error("health", [1], INVALID_PARAMS)).get("path")
        expect(told == "$", f"data.path is {told!r}")


@proves("W-PARAMS-MORE")
async def unknown_keys(rig: Rig) -> None:
    session = await rig.shared()
    await session.result("health", {"no_such_key": 1})
    await session.exec(rig.words.true, no_such_key={"deep": [1]})


@proves("W-STDOUT")
async def pure_stdout(rig: Rig) -> None:
    async with rig.started() as session:
        process = await session.exec(rig.words.echo("loud"))
        await process.outputs()
        await (await session.exec(rig.words.stderr("louder"))).outputs()
        await session.wire.request("exec", {"cmd": ["/no/such/program"]})
        await session.result("shutdown")
        others = await session.wire.finished()
        expect(not others and not session.wire.foul, f"stdout also carried {others or session.wire.foul}")
