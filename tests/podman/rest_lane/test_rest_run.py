"""Runs, merged streams and orphans on the REST lane, on a real Podman and on an engine made of a script."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw.processes.lane import Collected, Collection
from fastclaw.processes.relayed_streams import Collector
from tests.podman.rest_lane.rest_rig import complete, grace, marked, spec

if TYPE_CHECKING:
    from fastclaw.podman.rest_lane.rest import RestLane, RestProcess

SECONDS = 20
PATIENCE_MS = 20_000


async def ran(lane: RestLane, *cmd: str, data: bytes | None = None, **more: Any) -> tuple[RestProcess, Collected]:
    """A run to its end, given back."""
    fields = {name: more.pop(name) for name in ("merge_stderr", "orphans") if name in more}
    process = await lane.run(spec(*cmd, stdin=data is not None, **fields), Collection(input=data or b"", **more), 0)
    assert process.collected is not None
    async with asyncio.timeout(SECONDS):
        result = await process.collected
    return process, result


async def give_back(process: RestProcess) -> None:
    assert process.streams_ended is not None
    async with asyncio.timeout(SECONDS):
        await process.streams_ended
    await process.aclose()


@pytest.mark.podman
async def test_output_errors_and_code(lane: RestLane) -> None:
    process, result = await ran(lane, "sh", "-c", "cat; echo bad >&2; exit 3", data=b"in")
    assert (result.stdout.head, result.stderr.head, result.status.exit_code) == (b"in", b"bad\n", 3)
    await give_back(process)


@pytest.mark.podman
async def test_much_of_both_ways(lane: RestLane) -> None:
    data = os.urandom(4 << 20)
    process, result = await ran(lane, "cat", data=data, output_limit=len(data))
    assert result.stdout.head + result.stdout.tail == data
    await give_back(process)


@pytest.mark.podman
async def test_what_a_command_leaves_running_lives_or_ends_with_it(lane: RestLane) -> None:
    script = "setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo up"
    for orphans, left in (("keep", 1), ("kill", 0)):
        begun = spec("sh", "-c", script, orphans=orphans)
        process = await lane.start(begun, 0)
        assert (await complete(process))[0] == b"up\n"  # which waits for the orphans' end
        assert len(marked(begun.process_id)) == left
        if left:
            await process.end_tree(grace())


@pytest.mark.podman
async def test_both_streams_in_one(lane: RestLane) -> None:
    begun = spec("sh", "-c", "echo out; echo err >&2", merge_stderr=True)
    out, err, _ = await complete(await lane.start(begun, 0))
    assert (sorted(out.splitlines()), err) == ([b"err", b"out"], b"")


@pytest.mark.podman
async def test_a_run_over_its_limit_is_ended(lane: RestLane) -> None:
    process, result = await ran(lane, "yes", output_limit=1000, on_limit="kill")
    assert (result.limited, len(result.stdout.head + result.stdout.tail)) == (True, 1000)
    await give_back(process)


@pytest.mark.podman
async def test_a_run_whose_streams_cannot_be_watched_leaves_nothing(
    lane: RestLane, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Collector) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Collector, "_start", refuse)
    begun = spec("sleep", "1000")
    with pytest.raises(OSError, match="No space"):
        await lane.run(begun, Collection(), 0)
    assert not marked(begun.process_id)
