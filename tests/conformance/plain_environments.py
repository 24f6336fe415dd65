"""Environments of `plain_runtime.py`: names for processes that end together, with options that a few checks need."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import itertools
import os
import time
from typing import TYPE_CHECKING, Any

from tests.conformance.plain_process import Failed, Process, Stream, invalid

if TYPE_CHECKING:
    from tests.conformance.plain_runtime import Plain

START_S = 0.05
"""What a start takes, so that something can come in between."""

OPTIONS = ("max_processes", "queue_limit", "env", "lifetime_ms", "image", "pull", "workspace", "linger_ms")


def unknown(name: str, path: str) -> Failed:
    nearest = next(iter(difflib.get_close_matches(name, OPTIONS, n=1)), None)
    return Failed(-32602, "invalid_params", "unknown_option", path=f"{path}.{name}", nearest=nearest)


def wrong_state(reason: str, *, retryable: bool = False) -> Failed:
    return Failed(-32002, "invalid_state", reason, retryable=retryable)


class Environment:
    """Some processes with a name."""

    def __init__(self, name: str, given: dict[str, Any]) -> None:
        self.name, self.given = name, given
        self.options: dict[str, Any] = given.get("options", {})
        self.state = "starting"
        self.started_at = time.time()
        self.processes: list[Process] = []
        self.starting: asyncio.Future[Any] | None = None

    def live(self) -> list[Process]:
        return [process for process in self.processes if not process.exited.is_set()]

    def row(self) -> dict[str, Any]:
        row = {"environment": self.name, "state": self.state, "started_at": self.started_at, "live": len(self.live())}
        lifetime_ms = self.options.get("lifetime_ms")
        return row if lifetime_ms is None else {**row, "ends_at": self.started_at + lifetime_ms / 1000}


class Environments:
    """Those of one runtime, by name."""

    def __init__(self, plain: Plain) -> None:
        self._plain, self._numbers = plain, itertools.count(1)
        self.by_name: dict[str, Environment] = {}
        self.pool: list[dict[str, Any]] = []

    def find(self, params: dict[str, Any]) -> Environment:
        name = params.get("environment", "main")
        if self._plain.breaks("knows-any-environment") and name not in self.by_name:
            name = "main"
        if name not in self.by_name:
            raise wrong_state("unknown_environment")
        return self.by_name[name]

    def usable(self, params: dict[str, Any]) -> Environment:
        environment = self.find(params)
        if environment.state != "running":
            reason = "unknown_environment" if self._plain.breaks("hides-what-is-busy") else "environment_busy"
            raise wrong_state(reason, retryable=True)
        return environment

    def admit(self, params: dict[str, Any]) -> Environment:
        """For one more process."""
        environment = self.usable(params)
        most = environment.options.get("max_processes", 1_000)
        if len(environment.live()) >= most and not self._plain.breaks("bounds-nothing"):
            raise Failed(-32000, "exec_failed", "overloaded", retryable=True)
        return environment

    # --- start ---

    async def start(self, params: dict[str, Any]) -> dict[str, Any]:
        token = params.get("token")
        known = [one for one in self.by_name.values() if token is not None and one.given.get("token") == token]
        if known and not self._plain.breaks("forgets-tokens"):
            if known[0].given != params and not self._plain.breaks("takes-tokens-for-anything"):
                raise invalid("$.token")
            await self._up(known[0])
            return self._told(known[0])
        self.check(params.get("options", {}), "$.options")
        name = params.get("environment") or f"e{next(self._numbers)}"
        if name in self.by_name and not self._plain.breaks("takes-names-twice"):
            raise wrong_state("environment_exists")
        environment = self.by_name[name] = Environment(name, params)
        environment.starting = self._plain.own(asyncio.sleep(START_S))
        try:
            await self._up(environment)
        except asyncio.CancelledError:
            if not self._plain.breaks("cancels-in-word"):
                del self.by_name[name]
            raise
        environment.state = "running"
        if "lifetime_ms" in environment.options and not self._plain.breaks("lives-for-ever"):
            self._plain.own(self._end_later(environment))
        return self._told(environment)

    async def _up(self, environment: Environment) -> None:
        assert environment.starting is not None
        await asyncio.wait((environment.starting,))
        if environment.starting.cancelled():
            raise wrong_state("environment_stopped")

    def check(self, options: dict[str, Any], path: str) -> None:
        for name in options:
            if name not in OPTIONS and not self._plain.breaks("takes-any-option"):
                raise unknown(name, path)

    def _told(self, environment: Environment) -> dict[str, Any]:
        directory = "/nowhere" if self._plain.breaks("starts-nowhere") else os.getcwd()
        return {"environment": environment.name, "lane": "plain", "working_dir": directory, "user": "0:0"}

    async def _end_later(self, environment: Environment) -> None:
        await asyncio.sleep(environment.options["lifetime_ms"] / 1000)
        await self.stop({"environment": environment.name})

    # --- stop, reset ---

    async def stop(self, params: dict[str, Any]) -> dict[str, Any]:
        environment = self.find(params)
        if environment.state == "starting" and not self._plain.breaks("comes-up-all-the-same"):
            assert environment.starting is not None
            environment.starting.cancel()
        if environment.state == "running":
            environment.state = "stopping"
            if not self._plain.breaks("stops-in-word"):
                await asyncio.gather(*(process.end_tree("killed") for process in environment.processes))
            self.close(environment)
        if not self._plain.breaks("comes-up-all-the-same"):
            self.by_name.pop(environment.name, None)
            self._plain.forget(environment.processes)
        return {}

    async def reset(self, params: dict[str, Any]) -> dict[str, Any]:
        environment = self.usable(params)
        environment.state = "resetting"
        if not self._plain.breaks("resets-in-word"):
            for process in environment.processes:
                process.gap = process.exited.is_set() and any(map(_has_unread, (process.stdout, process.stderr)))
            await asyncio.gather(*(self._end(process) for process in environment.processes))
            self.close(environment)
        environment.state = "running"
        return self._told(environment)

    async def _end(self, process: Process) -> None:
        if not self._plain.breaks("resets-leaders"):
            await process.end_tree("" if self._plain.breaks("forgets-why") else "killed")
        elif not process.exited.is_set():
            process.reason = "killed"
            process.leader.kill()
            await process.exited.wait()

    def close(self, environment: Environment) -> None:
        for path in [path for process in environment.processes for path in process.paths]:
            if not self._plain.breaks("leaves-sockets"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)

    def rows(self) -> dict[str, Any]:
        rows = [environment.row() for environment in self.by_name.values()]
        return {"environments": [{**row, "live": 0} for row in rows] if self._plain.breaks("counts-nothing") else rows}

    def pool_set(self, params: dict[str, Any]) -> dict[str, Any]:
        for number, kind in enumerate(params["pool"]):
            self.check({name: value for name, value in kind.items() if name != "size"}, f"$.pool[{number}]")
        self.pool = params["pool"]
        return {}

    def health(self) -> dict[str, Any]:
        return {"pool": {"kinds": [{"size": kind["size"], "ready": kind["size"]} for kind in self.pool]}}


def _has_unread(stream: Stream) -> bool:
    if stream.data or not stream.is_open:
        return bool(stream.data)
    with contextlib.suppress(BlockingIOError):
        return bool(os.read(stream.fd, 1))
    return False
