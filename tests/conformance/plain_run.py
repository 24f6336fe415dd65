"""`run` of `plain_runtime.py`: what comes of a command's input and output."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
from typing import TYPE_CHECKING, Any

from tests.conformance.plain_process import CHUNK, Failed, Process

if TYPE_CHECKING:
    from tests.conformance.plain_runtime import Plain

LINE = 32 * 2**20


class Run:
    """A `run`: its input, its output, its answer."""

    def __init__(self, process: Process, plain: Plain) -> None:
        self._process = process
        self._params = process.params
        self._streams = (process.stdout, process.stderr)
        self._plain = plain

    async def answer(self) -> dict[str, Any]:
        feeding = self._plain.own(self._feed())
        if self._params.get("on_limit") == "kill" and not self._plain.breaks("never-kills"):
            self._plain.own(self._guard())
        await self._read()
        if self._plain.breaks("fails-on-unread-input"):
            self._process.code = self._process.code or await feeding
        if sum(len(stream.data) for stream in self._streams) > self._room():
            raise Failed(-32000, "exec_failed", "overloaded", retryable=True)
        told = self._told()
        for stream in self._streams:
            if self._plain.breaks("closes-streams"):
                stream.close()
            elif self._plain.breaks("stops-reading"):
                stream.pause()
        return told

    async def _read(self) -> None:
        for stream in self._streams:
            stream.read_on()
            if self._plain.breaks("reads-one-by-one"):
                await stream.ended.wait()
        if self._plain.breaks("answers-at-start"):
            return
        if self._plain.breaks("answers-at-end-of-streams"):
            await self._ended()
            return
        await self._process.exited.wait()
        if not self._plain.breaks("answers-at-exit"):
            await self._drain(
                None if self._plain.breaks("waits-for-orphans") else self._params.get("drain_ms", 200) / 1000
            )

    async def _ended(self) -> None:
        for stream in self._streams:
            await stream.ended.wait()

    async def _drain(self, patience: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._ended()
        # What is in the pipes by now was written before.
        for stream in self._streams:
            with contextlib.suppress(BlockingIOError):
                while stream.is_open and (chunk := os.read(stream.fd, CHUNK)):
                    stream.data += chunk

    async def _feed(self) -> int:
        """The exit code that a careless runtime would make of input that nobody reads."""
        stdin = self._process.leader.stdin
        assert stdin is not None
        if self._plain.breaks("leaves-stdin-open") and "input" not in self._params:
            return 0
        text = self._params.get("input")
        data = text.encode() if text is not None else base64.b64decode(self._params.get("input_base64", ""))
        try:
            await asyncio.to_thread(stdin.write, b"" if self._plain.breaks("ignores-input") else data)
            await asyncio.to_thread(stdin.close)
        except BrokenPipeError:
            return 1
        return 0

    async def _guard(self) -> None:
        """End the tree when a stream grows over its limit."""
        limit, streams = self._limit(), self._streams
        while not all(stream.ended.is_set() for stream in streams):
            if any(len(stream.data) > limit for stream in streams):
                if self._plain.breaks("kills-the-group"):
                    self._process.reason = "killed"
                    os.killpg(self._process.leader.pid, signal.SIGKILL)
                    return
                await self._process.end_tree("killed")
                return
            for stream in streams:
                stream.arrived.clear()
            waits = [asyncio.ensure_future(stream.arrived.wait()) for stream in streams]
            _, late = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in late:
                wait.cancel()

    def _room(self) -> float:
        """Of this run alone, after its end: enough to be told apart from one that looks at neither."""
        if self._plain.breaks("holds-anything"):
            return float("inf")
        return float(self._plain.options.get("run_output_bytes", 2**30))

    def _limit(self) -> int:
        return int(self._params.get("output_limit", 2**20))

    def _told(self) -> dict[str, Any]:
        out, err = bytes(self._process.stdout.data), bytes(self._process.stderr.data)
        if self._params.get("merge_stderr") and self._plain.breaks("merges-late"):
            out, err = out + err, b""
        limit = self._limit()
        while True:
            told = {**self._process.record(), "dropped": {}}
            for name, data in (("stdout", out), ("stderr", err)):
                self._give(told, name, data, limit)
            if self._plain.breaks("long-lines") or len(json.dumps(told, ensure_ascii=False).encode()) < LINE - CHUNK:
                return told
            limit = limit * 3 // 4 if limit else len(out)

    def _give(self, told: dict[str, Any], name: str, data: bytes, limit: int) -> None:
        is_text = _is_text(data)
        head, tail = self._cut(data, limit, is_text)
        missing = len(data) - len(head) - len(tail)
        if self._plain.breaks("loses-a-byte"):
            head = head[: CHUNK // 2] + head[CHUNK // 2 + 1 :]
        given = head + tail
        told["dropped"][name] = len(given) if missing and self._plain.breaks("counts-what-is-given") else missing
        if missing and tail and head:
            told.setdefault("gap_at", {})[name] = len(head)
        if is_text or self._plain.breaks("replaces-bytes"):
            told[name] = given.decode(errors="replace")
        else:
            told[name], told[f"{name}_base64"] = None, base64.b64encode(given).decode()

    def _cut(self, data: bytes, limit: int, is_text: bool) -> tuple[bytes, bytes]:
        if len(data) <= limit:
            return data, b""
        keep = "ends" if self._plain.breaks("keeps-ends-always") else self._params.get("keep", "ends")
        first = {"head": limit, "tail": 0, "ends": (limit + 1) // 2}[keep]
        start = len(data) - (limit - first)
        if is_text and not self._plain.breaks("cuts-characters"):
            while first > 0 and _is_middle(data, first):
                first -= 1
            while start < len(data) and _is_middle(data, start):
                start += 1
        return data[:first], data[start:]


def _is_middle(data: bytes, at: int) -> bool:
    """Whether a cut before this byte would part a character."""
    return at < len(data) and data[at] & 0xC0 == 0x80


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
