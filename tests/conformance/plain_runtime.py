"""A small runtime, in plain Python, that keeps what is promised of `run`, `cancel`, environments and images, or not.

`python -m tests.conformance.plain_runtime DIRECTORY` keeps it: a check that blames it is wrong. Each further word of
test_broken.py breaks it on purpose: the checker must say what. Its sockets are in DIRECTORY; it has no bounds and no
states, and only what those checks need.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import fcntl
import itertools
import json
import os
import select
import sys
from pathlib import Path
from typing import Any

from tests.conformance.plain_environments import Environment, Environments
from tests.conformance.plain_images import Images
from tests.conformance.plain_process import CHUNK, Failed, Process, Stream, invalid
from tests.conformance.plain_run import LINE, Run

HIGHEST = 16 * 2**20
CANCELLABLE = ("exec", "run", "wait", "environment_start", "image_build")
WORDS = {"keep": ("head", "tail", "ends"), "on_limit": ("truncate", "kill"), "orphans": ("keep", "kill")}


class Sockets:
    """The two sockets of an `exec`, and who reads its streams: a client, nobody, or at last this runtime itself."""

    def __init__(self, process: Process, plain: Plain) -> None:
        self._process = process
        self._plain = plain
        self.paths = [str(plain.directory / f"{os.getpid()}.{process.id}.{name}") for name in ("stdio", "stderr")]
        self._connected = dict.fromkeys(self.paths, False)
        self._cut_off = False

    async def listen(self) -> None:
        streams = (self._process.stdout, self._process.stderr)
        for path, stream in zip(self.paths, streams, strict=True):

            async def serve(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str = path, stream: Stream = stream
            ) -> None:
                self._plain.clients.append(writer)
                await self._serve(path, stream, reader, writer)

            await asyncio.start_unix_server(serve, path)
        self._plain.own(self._linger(streams))

    async def _serve(
        self, path: str, stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self._connected[path]:
            writer.write(b"welcome")
        self._connected[path] = True
        inward = self._plain.own(self._inward(reader)) if path.endswith("stdio") else None
        with contextlib.suppress(ConnectionError):
            await self._outward(stream, reader, writer)
            writer.write_eof()
        if inward is not None and not reader.at_eof():
            await inward
        self._connected[path] = False
        writer.close()

    async def _inward(self, reader: asyncio.StreamReader) -> None:
        stdin = self._process.leader.stdin
        assert stdin is not None
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(CHUNK):
                os.write(stdin.fileno(), chunk)
        stdin.close()

    async def _outward(self, stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream.read_on()
        while True:
            stream.arrived.clear()
            if stream.data:
                writer.write(bytes(stream.data.upper() if self._plain.breaks("shouts") else stream.data))
                stream.data.clear()
                await writer.drain()
            elif stream.ended.is_set() or self._cut_off or writer.transport.is_closing():
                break
            else:
                await stream.arrived.wait()
        stream.pause()

    async def _linger(self, streams: tuple[Stream, Stream]) -> None:
        await self._process.exited.wait()
        linger_ms = self._plain.options.get("linger_ms", 30_000)
        if self._plain.options.get("max_lingering", 1) == 0 or self._plain.breaks("drains-at-once"):
            linger_ms = 0
        await asyncio.sleep(linger_ms / 1000)
        for path, stream in zip(self.paths, streams, strict=True):
            if self._connected[path] and not self._plain.breaks("closes-readers"):
                continue
            if self._plain.breaks("closes-readers"):
                self._cut_off = True
                stream.arrived.set()
            if self._plain.breaks("closes-streams"):
                stream.close()
            elif not self._plain.breaks("stops-reading"):
                stream.throw_away()


class Plain:
    """The runtime: one request after the other from stdin, each in a task of its own."""

    def __init__(self, directory: Path, broken: list[str]) -> None:
        self.directory = directory
        self.options: dict[str, Any] = {}
        self.clients: list[asyncio.StreamWriter] = []
        self._broken = set(broken)
        self._tasks: set[asyncio.Future[Any]] = set()
        self._in_flight: list[tuple[Any, str, asyncio.Task[Any]]] = []
        self._all: dict[str, Process] = {}
        self._answered: dict[Any, str] = {}
        self._keyed: dict[str, tuple[dict[str, Any], asyncio.Task[Any]]] = {}
        self._ids = itertools.count(1)
        self._environments = Environments(self)
        self.images = Images(self)

    def breaks(self, *names: str) -> bool:
        return not self._broken.isdisjoint(names)

    def own(self, work: Any) -> asyncio.Future[Any]:
        task: asyncio.Future[Any] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=LINE + 2)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            if not line.strip():
                continue
            try:
                request = json.loads(line)
            except ValueError:
                failed = Failed(-32700, "parse_error", "parse_error")
                say("what?" if self.breaks("says-what") else {"id": None, "error": self._told(failed)})
                continue
            if request["method"] == "shutdown":
                break
            task = loop.create_task(self._answer(request))
            self._in_flight.append((request.get("id"), request["method"], task))
        environments = self._environments.by_name
        ended = [environments["main"]] if self.breaks("shuts-main-down") else environments.values()
        await asyncio.gather(*(one.end_tree("killed") for environment in ended for one in environment.processes))
        for environment in environments.values():
            self._environments.close(environment)
        await self.images.end_steps()
        if line:
            say({"id": request["id"], "result": {}})

    async def _answer(self, request: dict[str, Any]) -> None:
        request_id = request.get("id")
        try:
            result = await getattr(self, f"_{request['method']}", self._nothing)(request.get("params") or {})
            message = {"id": request_id, "result": result}
            if isinstance(result, dict) and "process_id" in result:
                self._answered[request_id] = result["process_id"]
        except Failed as failed:
            message = {"id": request_id, "error": self._told(failed)}
        except asyncio.CancelledError:
            message = {"id": request_id, "error": Failed(-32800, "cancelled", "cancelled").error}
        self._in_flight = [one for one in self._in_flight if one[2] is not asyncio.current_task()]
        if self.breaks("shouts-ids") and isinstance(request_id, str):
            message["id"] = request_id.upper()
        if request_id is not None or self.breaks("answers-notifications"):
            say(message)

    def _told(self, failed: Failed) -> dict[str, Any]:
        return {**failed.error, "message": "no", "data": {}} if self.breaks("bare-errors") else failed.error

    async def _nothing(self, params: dict[str, Any]) -> None:
        raise Failed(-32601, "method_not_found", "method_not_found")

    async def _initialize(self, params: dict[str, Any]) -> dict[str, Any]:
        self.options = params.get("options", {})
        offered = ["run", "cancel", "wait", "list", "key", "timeout_ms", "kill_tree", "separate_eof", "environments"]
        if self.options.get("environment", True) or self.breaks("always-has-main", "shuts-main-down"):
            self._environments.by_name["main"] = main = Environment("main", params)
            main.state = "running"
        self._environments.pool = self.options.get("pool", [])
        offered += ["images"]
        offered += ["usage"] * self.breaks("uses-nothing") + ["tty"] * self.breaks("claims-a-terminal")
        offered += ["files"] * self.breaks("claims-files")
        offered += ["memory_bytes", "cpus", "pids"] * self.breaks("claims-limits")
        env: dict[str, Any] = {"env": {}} if self.breaks("empty-env") else {}
        server = {"name": "plain", "version": "0"}
        return {"server": server, "capabilities": offered, "image": self.images.base, **env}

    async def _health(self, params: dict[str, Any]) -> dict[str, Any]:
        if "environment" in params:
            self._environments.find(params)
        return {"status": "healthy", "details": self._environments.health()}

    async def _environment_start(self, params: dict[str, Any]) -> dict[str, Any]:
        return await self._environments.start(params)

    async def _environment_stop(self, params: dict[str, Any]) -> dict[str, Any]:
        return await self._environments.stop(params)

    async def _environment_reset(self, params: dict[str, Any]) -> dict[str, Any]:
        return await self._environments.reset(params)

    async def _environment_list(self, params: dict[str, Any]) -> dict[str, Any]:
        return self._environments.rows()

    async def _pool_set(self, params: dict[str, Any]) -> dict[str, Any]:
        return self._environments.pool_set(params)

    def notify(self, params: dict[str, Any]) -> None:
        """How a request comes on."""
        say({"method": "progress", "params": params})

    async def _image_pull(self, params: dict[str, Any]) -> dict[str, Any]:
        return self.images.pull(params)

    async def _image_build(self, params: dict[str, Any]) -> dict[str, Any]:
        return await self.images.build(params, self._request_id())

    async def _image_load(self, params: dict[str, Any]) -> dict[str, Any]:
        return self.images.load(params)

    def _request_id(self) -> Any:
        """Of the request that is being answered."""
        return next(request_id for request_id, _, task in self._in_flight if task is asyncio.current_task())

    async def _start(self, params: dict[str, Any]) -> Process:
        await asyncio.sleep(0)
        if self.breaks("runs-anywhere"):
            params = {name: value for name, value in params.items() if name not in ("env", "working_dir")}
        environment = self._environments.admit(params)
        given = {**self.images.env(environment.options.get("image")), **environment.options.get("env", {})}
        params = {**params, "env": {**given, **params.get("env", {})}}
        process_id = str(len(environment.processes) + 1 if self.breaks("numbers-anew") else next(self._ids))
        process = Process(process_id, params, self)
        self._all[process.id] = process
        environment.processes.append(process)
        if "timeout_ms" in params and not self.breaks("never-times-out"):
            self.own(process.time_out())
        return process

    async def _exec(self, params: dict[str, Any]) -> dict[str, Any]:
        self._check(params)
        process = await self._start(params)
        sockets = Sockets(process, self)
        process.paths = sockets.paths
        try:
            if not self.breaks("listens-late"):
                await sockets.listen()
        except asyncio.CancelledError:
            await process.end_tree("killed")
            raise
        told = {"process_id": process.id, "stdio_addr": sockets.paths[0], "stderr_addr": sockets.paths[1]}
        if self.breaks("forgets-ids"):
            told["process_id"] = "1"
        return told

    async def _run(self, params: dict[str, Any]) -> dict[str, Any]:
        if not self.breaks("takes-any-params"):
            self._check(params)
        key = params.get("key")
        if key is None or self.breaks("forgets-keys"):
            return await self._run_once(params)
        is_first = key not in self._keyed
        if is_first:
            self._keyed[key] = (params, asyncio.get_running_loop().create_task(self._run_once(params)))
        first, running = self._keyed[key]
        if first != params and not self.breaks("joins-anything"):
            raise invalid("$.key")
        was_done = running.done()
        told: dict[str, Any] = await asyncio.shield(running)
        return {**told, "stdout": None, "stderr": None} if was_done else told

    async def _run_once(self, params: dict[str, Any]) -> dict[str, Any]:
        process = await self._start(params)
        try:
            return await Run(process, self).answer()
        except asyncio.CancelledError:
            if not self.breaks("cancels-in-word"):
                await process.end_tree("killed")
            raise

    def _check(self, params: dict[str, Any]) -> None:
        if not isinstance(params.get("cmd"), list) or not params["cmd"]:
            raise invalid("$.cmd")
        for name in ("cmd", "env"):
            if "\\u0000" in json.dumps(params.get(name)):
                raise invalid(f"$.{name}")
        if not 0 <= params.get("output_limit", 0) <= HIGHEST:
            raise invalid("$.output_limit")
        if params.get("drain_ms", 0) < 0:
            raise invalid("$.drain_ms")
        for name, words in WORDS.items():
            if params.get(name, words[0]) not in words:
                raise invalid(f"$.{name}")
        self._check_input(params)

    def _check_input(self, params: dict[str, Any]) -> None:
        if "input" in params and "input_base64" in params:
            raise invalid("$.input_base64")
        try:
            base64.b64decode(params.get("input_base64", ""), validate=True)
        except binascii.Error as error:
            raise invalid("$.input_base64") from error

    async def _kill(self, params: dict[str, Any]) -> dict[str, Any]:
        if not self.breaks("kills-nothing"):
            await self._find(params).end_tree("killed")
        return {}

    def forget(self, processes: list[Process]) -> None:
        """Their environment has ended."""
        for process in processes:
            self._all.pop(process.id, None)

    def _find(self, params: dict[str, Any]) -> Process:
        if params["process_id"] not in self._all:
            raise Failed(-32002, "invalid_state", "unknown_process")
        return self._all[params["process_id"]]

    async def _wait(self, params: dict[str, Any]) -> dict[str, Any]:
        process, timeout_ms = self._find(params), params.get("timeout_ms")
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.exited.wait(), timeout_ms and timeout_ms / 1000)
        except asyncio.CancelledError:
            if self.breaks("kills-for-a-wait"):
                await process.end_tree("killed")
            raise
        return process.record()

    async def _list(self, params: dict[str, Any]) -> dict[str, Any]:
        there = self._environments.usable(params).processes
        there = list(self._all.values()) if self.breaks("lists-all") else there
        shown = [process for process in there if not self.breaks("hides-runs") or process.reason]
        rows = [{**process.record(), "cmd": process.params["cmd"]} for process in shown]
        return {"processes": rows}

    async def _cancel(self, params: dict[str, Any]) -> dict[str, Any]:
        if "id" not in params:
            raise invalid("$.id")
        wanted = params["id"]
        found = [one for one in self._in_flight if self._is(one[0], wanted) and one[1] in CANCELLABLE]
        if len(found) > 1 and not self.breaks("cancels-one-of-two"):
            raise invalid("$.id")
        for _, _, task in found[:1]:
            if not self.breaks("cancels-nothing"):
                task.cancel()
        if not found and wanted in self._answered and self.breaks("cancels-the-answered"):
            await self._all[self._answered[wanted]].end_tree("killed")
        return {}

    def _is(self, request_id: Any, wanted: Any) -> bool:
        if self.breaks("mixes-ids"):
            return str(request_id) == str(wanted)
        return type(request_id) is type(wanted) and bool(request_id == wanted)


def say(message: dict[str, Any] | str) -> None:
    """One line, the loop standing still meanwhile."""
    said = message if isinstance(message, str) else json.dumps({"jsonrpc": "2.0", **message}, ensure_ascii=False)
    line = memoryview(said.encode("utf-8", "replace") + b"\n")
    while line:
        select.select((), (1,), ())
        line = line[os.write(1, line) :]


def main() -> int:
    """The exit code."""
    plain = Plain(Path(sys.argv[1]), sys.argv[2:])
    for fd in (0, 1):
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)
    asyncio.run(plain.serve())
    return 3 if plain.breaks("ends-with-3") else 0


if __name__ == "__main__":
    sys.exit(main())
