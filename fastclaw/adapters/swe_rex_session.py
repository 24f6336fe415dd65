"""Sessions of SWE-ReX in a sandbox: its own `BashSession`, on a terminal there instead of one here."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import FunctionType, MethodType
from typing import Any

import pexpect
from pexpect.spawnbase import SpawnBase
from swerex.exceptions import BashIncorrectSyntaxError, SessionNotInitializedError
from swerex.runtime import abstract as rex
from swerex.runtime import local

from fastclaw import sandbox
from fastclaw.errors import FastclawError
from fastclaw.sandbox.loop_thread import loop_thread

_READY = "fastclaw-ready"
_BASH = ("sh", "-c", f"stty -echo && echo {_READY} && TERM=dumb exec bash")
"""For a program that reads what it says: without echo, and without the escape sequences that bash has for terminals."""

_HARMLESS = (
    "BashObservation",
    "CommandTimeoutError",
    "NoExitCodeError",
    "_split_bash_command",
    "_strip_control_chars",
    "deepcopy",
    "pexpect",
    "re",
)
"""Names that BashSession._run_normal has from its module, and that run nothing on this host."""


class Session(local.BashSession):
    """A bash in a sandbox that keeps its state from command to command.

    SWE-ReX checks a command's syntax by a shell beside itself, in a document that a line of the command can end: what
    follows that line would run on this host. So the check is made in the sandbox, and SWE-ReX's code gets no names but
    those it is known to need.
    """

    def __init__(self, request: rex.CreateBashSessionRequest, box: sandbox.Sandbox) -> None:
        super().__init__(request)
        self._box = box
        self._thread = ThreadPoolExecutor(1, "swe-rex-session")  # pexpect blocks; one action after another
        names = {name: getattr(local, name) for name in _HARMLESS}
        run = FunctionType(local.BashSession._run_normal.__code__, names | {"_check_bash_command": self._check})
        self._run_normal = MethodType(run, self)

    def _check(self, command: str) -> None:
        done = loop_thread().call(self._box.run(["bash", "-n"], input=command))
        if not done.ok:
            said = {"bash_stdout": done.text, "bash_stderr": done.error_text}
            raise BashIncorrectSyntaxError(f"bash: {done.error_text.strip()} in {command!r}", extra_info=said)

    async def start(self) -> rex.CreateBashSessionResponse:
        """Start bash, have it read the files of the request, and give it its prompt."""
        process = await loop_thread().bring(self._box.exec(_BASH, tty=True))
        self._shell = _Terminal(process)
        response: rex.CreateBashSessionResponse = await self._in_thread(self._prompted())
        return response

    async def _prompted(self) -> rex.CreateBashSessionResponse:
        self.shell.expect_exact(_READY, timeout=self.request.startup_timeout)  # what comes earlier is echoed
        sources = [f"source {path}" for path in self.request.startup_source]
        self.shell.sendline(" ; ".join(sources + self._get_reset_commands()))
        self.shell.expect(self._ps1, timeout=self.request.startup_timeout)
        return rex.CreateBashSessionResponse(output=local._strip_control_chars(self.shell.before))

    async def run(self, action: rex.BashAction | rex.BashInterruptAction) -> rex.BashObservation:
        """Run a command, or interrupt the one that runs. Where this is cancelled, the session is ended."""
        observation: rex.BashObservation = await self._in_thread(super().run(action))
        return observation

    async def _in_thread(self, blocking: Coroutine[Any, Any, Any]) -> Any:
        if self._shell is None:
            blocking.close()
            raise SessionNotInitializedError(f"session {self.request.session!r} has ended")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, asyncio.run, blocking)
        except asyncio.CancelledError:
            await self.close()  # nothing else ends the thread's wait for output
            raise

    async def close(self) -> rex.CloseBashSessionResponse:
        """End bash with what it runs. Idempotent."""
        shell, self._shell = self._shell, None
        if shell is not None:
            await loop_thread().bring(shell.end())
        self._thread.shutdown(wait=False)
        return rex.CloseBashSessionResponse()


class _Terminal(SpawnBase):
    """The terminal of a process in a sandbox, with what BashSession asks of a `pexpect.spawn`."""

    def __init__(self, process: sandbox.Process) -> None:
        super().__init__(encoding="utf-8", codec_errors="backslashreplace")
        self._process = process

    def read_nonblocking(self, size: int = 1, timeout: float | None = -1) -> str:
        seconds = self.timeout if timeout == -1 else timeout
        try:
            data = loop_thread().call(asyncio.wait_for(self._process.stdout.read(size), seconds))
        except TimeoutError:
            raise pexpect.TIMEOUT("Timeout exceeded.") from None
        except FastclawError:  # it was left while this waited
            data = b""
        if not data:
            self.flag_eof = True
            raise pexpect.EOF("End of the terminal.")
        return self._decoder.decode(data, final=False)

    def send(self, text: str) -> None:
        loop_thread().call(self._process.stdin.write(text))

    def sendline(self, text: str = "") -> None:
        self.send(text + self.linesep)

    def sendcontrol(self, letter: str) -> None:
        self.send(chr(ord(letter.upper()) - ord("@")))

    def sendintr(self) -> None:
        self.sendcontrol("c")

    def setecho(self, state: bool) -> None:
        """Nothing: BashSession has the shell do it, too."""

    def waitnoecho(self) -> None:
        """Nothing, as `setecho`."""

    async def end(self) -> None:
        with suppress(FastclawError):  # it, or its sandbox, has ended
            await self._process.kill(0)  # an interactive bash ignores TERM
        await self._process.close()
