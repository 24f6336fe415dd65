"""Commands of `plain_runtime.py`: their pipes, their trees, and errors that become answers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.conformance.plain_runtime import Plain

MARK = "PLAIN_RUNTIME_PROCESS"
CHUNK = 65_536
POLL_S = 0.01
LOOKS = 3
"""In a row, at which nothing is left."""


NO_USAGE = {"user_us": 0, "system_us": 0, "max_rss_kb": 0}


class Failed(Exception):
    """What becomes an error on the wire."""

    def __init__(self, code: int, kind: str, reason: str, **data: Any) -> None:
        super().__init__(reason)
        told = {"kind": kind, "reason": reason, "fault": "caller", "retryable": False, **data}
        self.error = {"code": code, "message": f"{kind.replace('_', ' ')}: {reason}", "data": told}


def invalid(path: str) -> Failed:
    """Params of the wrong shape."""
    return Failed(-32602, "invalid_params", "invalid_params", path=path)


def bearers(mark: str) -> list[int]:
    """Processes whose environment has the mark."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes():
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                found += [int(entry.name)] if state not in "ZX" else []
    return found


class Stream:
    """The read end of a pipe, and what came out of it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.data = bytearray()
        self.ended = asyncio.Event()
        self.arrived = asyncio.Event()
        self.is_open = True
        self._is_wanted = True
        os.set_blocking(fd, False)

    def read_on(self) -> None:
        if self.is_open:
            asyncio.get_running_loop().add_reader(self.fd, self._readable)

    def throw_away(self) -> None:
        """From now on."""
        self._is_wanted = False
        self.data.clear()
        self.read_on()

    def pause(self) -> None:
        if self.is_open:
            asyncio.get_running_loop().remove_reader(self.fd)

    def _readable(self) -> None:
        chunk = os.read(self.fd, CHUNK)
        self.data += chunk if self._is_wanted else b""
        if not chunk:
            self.close()
        self.arrived.set()

    def close(self) -> None:
        if self.is_open:
            self.pause()
            os.close(self.fd)
            self.is_open = False
        self.ended.set()


class Process:
    """A command, its pipes, and its tree."""

    def __init__(self, process_id: str, params: dict[str, Any], plain: Plain) -> None:
        self.id = process_id
        self.params = params
        self.reason = ""
        self.paths: list[str] = []
        self.gap = False
        self._plain = plain
        self._mark = f"{MARK}={os.getpid()}.{process_id}"
        self.leader = self._start(params)
        self.stdout, self.stderr = Stream(self._ends[0]), Stream(self._ends[1])
        self.exited = asyncio.Event()
        self.code = 0
        pidfd = os.pidfd_open(self.leader.pid)
        asyncio.get_running_loop().add_reader(pidfd, self._exit, pidfd)

    def _start(self, params: dict[str, Any]) -> subprocess.Popen[bytes]:
        out, out_end = os.pipe()
        err, err_end = os.pipe()
        self._ends = (out, err)
        is_merged = params.get("merge_stderr") and not self._plain.breaks("never-merges")
        try:
            return subprocess.Popen(
                params["cmd"],
                stdin=subprocess.PIPE,
                stdout=out_end,
                stderr=out_end if is_merged and not self._plain.breaks("merges-late") else err_end,
                cwd=self._directory(params),
                env={**os.environ, **params.get("env", {}), MARK: self._mark.partition("=")[2]},
                start_new_session=True,
            )
        except OSError as error:
            for fd in self._ends:
                os.close(fd)
            if self._plain.breaks("finds-anything"):
                return self._start({**params, "cmd": ["true"]})
            reason = "bad_working_dir" if error.filename == params.get("working_dir") else "not_found"
            raise Failed(-32000, "exec_failed", reason) from error
        finally:
            os.close(out_end)
            os.close(err_end)

    def _directory(self, params: dict[str, Any]) -> str | None:
        directory: str | None = params.get("working_dir")
        if directory and not directory.startswith("/") and self._plain.breaks("refuses-relative"):
            raise Failed(-32000, "exec_failed", "bad_working_dir")
        return directory

    def _exit(self, pidfd: int) -> None:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
        self.code = self.leader.wait()
        self.exited.set()
        if self.params.get("orphans") == "kill" and not self._plain.breaks("keeps-orphans"):
            self._plain.own(self.end_tree(""))
        if self._plain.breaks("ends-orphans"):
            self._plain.own(self.end_tree(""))

    async def end_tree(self, reason: str) -> None:
        """KILL until nothing is left."""
        if not self.exited.is_set():
            self.reason = self.reason or reason
        empty = 0
        # In the middle of an execve a process shows no environment: once is not enough.
        while empty < LOOKS:
            left = bearers(self._mark)
            empty = 0 if left else empty + 1
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(POLL_S)
        await self.exited.wait()

    async def time_out(self) -> None:
        await asyncio.sleep(self.params["timeout_ms"] / 1000)
        if not self.exited.is_set() or self._plain.breaks("times-out-late"):
            await self.end_tree("timeout")

    def record(self) -> dict[str, Any]:
        signum = -self.code if self.code < 0 else None
        gap = {"gap": True} if self.gap and not self._plain.breaks("hides-gaps") else {}
        return {
            **gap,
            "process_id": self.id,
            "state": "exited" if self.exited.is_set() else "running",
            "exit_code": None
            if signum or not self.exited.is_set()
            else self.code * (not self._plain.breaks("all-is-well")),
            "signal": signum,
            "reason": self.reason or ("signaled" if signum else "exited"),
            "timings": {},
            "usage": NO_USAGE if self._plain.breaks("uses-nothing") else None,
        }
