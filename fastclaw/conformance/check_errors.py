"""Checks of what an error says."""

from typing import Any

from fastclaw.conformance.registry import proves
from fastclaw.conformance.rig import Rig, Session, data_of, expect
from fastclaw.errors import BY_CODE


async def _samples(session: Session) -> list[dict[str, Any]]:
    """One error of each kind that any runtime can be brought to."""
    calls: list[tuple[str, Any]] = [
        ("no_such_method", None),
        ("exec", {"cmd": 5}),
        ("exec", {"cmd": ["/no/such/program"]}),
        ("kill", {"process_id": "no such process"}),
    ]
    errors = [(await session.wire.request(method, params)).get("error") for method, params in calls]
    session.wire.send(b"not json\n")
    errors.append((await session.wire.answer(None)).get("error"))
    expect(all(isinstance(error, dict) for error in errors), f"a call that must fail did not: {errors}")
    return [error for error in errors if error is not None]


@proves("E-DATA")
async def data_of_errors(rig: Rig) -> None:
    for error in await _samples(await rig.shared()):
        data, known = data_of(error), BY_CODE.get(error.get("code", 0))
        expect(known is not None and data.get("kind") == known.kind, f"`kind` does not fit the code: {error}")
        expect(isinstance(data.get("reason"), str) and bool(data["reason"]), f"no `reason`: {error}")
        expect(data.get("fault") in ("caller", "engine", "runtime"), f"no `fault`: {error}")
        expect(isinstance(data.get("retryable"), bool), f"no `retryable`: {error}")


@proves("E-WORDS")
async def words_of_errors(rig: Rig) -> None:
    for error in await _samples(await rig.shared()):
        known = BY_CODE.get(error.get("code", 0))
        prefix = known.prefix if known else ""
        expect(str(error.get("message")).startswith(prefix), f"the message does not begin with {prefix!r}: {error}")
