"""A command over the wire of a served runtime, and the same started by nobody but the kernel: both measured in C."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

if TYPE_CHECKING:
    from bench.lean_client import LeanClient
    from bench.programs import Programs

LOOP, THREADS = "loop", "threads"
"""The two floors, see run_floor.c."""

HEALTH_MS = 5
"""Between two calls of `health`: some hundred in a second or two, and next to no load."""


class Command(NamedTuple):
    """What is started on both sides, the same binary.

    Parameters:
        cmd: as the runtime is told.
        floor: path and argv, as posix_spawn takes them.
        input: text for its stdin.
        output: text that it must print.
    """

    cmd: list[str]
    floor: list[str]
    input: str = ""
    output: str = ""


class Times(NamedTuple):
    """Of one round: `seconds` for all of it, least and percentiles of one command (or one call) in microseconds."""

    seconds: float
    calls: int
    min_us: float
    p50_us: float
    p99_us: float
    max_us: float


def text(size: int) -> str:
    """What `work out` prints."""
    return ("abcdefghijklmnop" * (size // 16 + 1))[:size]


def floor(programs: Programs, way: str, command: Command, count: int, at_once: int, *, pipes: bool) -> Times:
    """The kernel's own cost: posix_spawn and wait.

    Parameters:
        way: LOOP or THREADS.
        pipes: with pipes for the streams, read to their ends; else bare.
    """
    streams = ["pipes" if pipes else "bare", len(command.input), len(command.output)]
    (told,) = programs.measure("run_floor", way, count, at_once, *streams, *command.floor)
    return Times(**told)


class Wire:
    """Commands over the stdio of a served runtime.

    Parameters:
        client: up, with nothing under way while a round is measured.
    """

    def __init__(self, programs: Programs, client: LeanClient) -> None:
        self._programs = programs
        self._client = client

    def run(self, command: Command, count: int, at_once: int) -> Times:
        """One `run` for each: stdout and stderr come with the exit record."""
        params: dict[str, Any] = {"cmd": command.cmd}
        if command.input:
            params["input"] = command.input
        words = [f'"stdout":"{command.output}"', '"stderr":""']
        return self._measure("run", params, words, count, at_once)[0]

    def exec(self, command: Command, count: int, at_once: int) -> Times:
        """`exec`, then `wait` for each; nobody connects to the streams."""
        return self._measure("exec", {"cmd": command.cmd, "stdin": False}, [], count, at_once)[0]

    def health_during_exec(self, command: Command, count: int, at_once: int) -> Times:
        """`health`, every HEALTH_MS, as long as `exec` and `wait` of the command go on."""
        return self._measure("exec", {"cmd": command.cmd, "stdin": False}, [], count, at_once, HEALTH_MS)[1]

    def _measure(
        self, method: str, params: dict[str, Any], words: list[str], count: int, at_once: int, health_ms: int = 0
    ) -> list[Times]:
        out, in_ = self._client.descriptors
        arguments = [
            out,
            in_,
            count,
            at_once,
            method,
            health_ms,
            orjson.dumps(params).decode(),
            '"exit_code":0',
            *words,
        ]
        told = self._programs.measure("rpc_client", *arguments, fds=(out, in_))
        return [Times(**one) for one in told]
