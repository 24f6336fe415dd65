"""How a command ended, for people: its exit code as a shell has it, its output, and why. No I/O."""

import signal as signals
from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec import UNSET

from fastclaw.client import Ran
from fastclaw.errors import ExecFailed, InvalidState
from fastclaw.runtime import ExitRecord

_SIGNALLED = 128
"""Added to a signal's number, as by a shell."""

_NOT_STARTED = {"not_found": 127, "permission_denied": 126, "not_executable": 126, "file_busy": 126}
_OTHERWISE_NOT_STARTED = 125
"""What a shell returns for a command that does not start, and `podman exec` for what is nobody's exit code."""

_CALLERS = frozenset({*_NOT_STARTED, "bad_working_dir", "unknown_user", "too_long"})
"""Why a command does not start that is asked for wrongly: no failure of the sandbox."""

_UNKNOWN = -1
"""Exit code of an end that cannot be known."""

_SHOWN = 500
"""Characters of its output that an error shows of a command: the end of a traceback."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """A command that has ended, however.

    Attributes:
        exit_code: its own, or 128 and the number of the signal that ended it. Where it did not start, 127 (not found),
            126 (may not be run) or 125, as a shell has it; -1 where how it ended cannot be known.
        signal: number of the signal that ended it.
        reason: `exited`, `signaled`, `killed`, `timeout`, `oom` or `unknown`; or why it did not start: `not_found`,
            `permission_denied`, `not_executable`, `file_busy`, `bad_working_dir`, `unknown_user`, `too_long`.
        stdout, stderr: what it wrote, as far as it was kept.
        dropped: bytes of each that were written and are not here.
        gap_at: after which byte of a stream its missing middle was, for each that lacks it (`keep="ends"`).
        error: in a line, why it did not start; else None.
        usage: `user_us`, `system_us` (microseconds) and `max_rss_kb`, where they are known.
        oom_kills: processes of the sandbox that the kernel killed for want of memory meanwhile.
        group: what was counted in a control group of its own, as in the exit record; nothing without `limits`.
        duration: seconds from when it was given to the sandbox to its end.
        incomplete: there may have been more output, which could not be had.
    """

    exit_code: int
    signal: int | None = None
    reason: str
    stdout: bytes = b""
    stderr: bytes = b""
    dropped: dict[str, int] = field(default_factory=lambda: {"stdout": 0, "stderr": 0})
    gap_at: dict[str, int] = field(default_factory=dict)
    error: str | None = None
    usage: dict[str, int] | None = None
    oom_kills: int = 0
    group: dict[str, int] = field(default_factory=dict)
    duration: float = 0.0
    incomplete: bool = False

    @property
    def text(self) -> str:
        """Its stdout as text; what is no UTF-8 is shown by replacement characters."""
        return self.stdout.decode(errors="replace")

    @property
    def error_text(self) -> str:
        """Its stderr as text, or why it did not start."""
        return self.error if self.error is not None else self.stderr.decode(errors="replace")

    @property
    def ok(self) -> bool:
        """Whether it exited by itself, with 0."""
        return self.exit_code == 0 and self.reason == "exited"

    @property
    def truncated(self) -> bool:
        """Whether there was more output than is here."""
        return any(self.dropped.values()) or self.incomplete

    def __repr__(self) -> str:
        more = f", {len(self.stderr)} bytes of stderr" if self.stderr else ""
        return f"<Done {self.ending} after {self.duration:.3f} s, {len(self.stdout)} bytes of stdout{more}>"

    @property
    def ending(self) -> str:
        """How it ended, in a few words."""
        if self.error is not None:
            return f"did not start ({self.reason})"
        how = f"exit code {self.exit_code}" if self.signal is None else _name(self.signal)
        return how if self.reason in ("exited", "signaled") else f"{self.reason}, {how}"

    def check(self) -> "Done":
        """Itself, where `ok`.

        Raises:
            CommandFailed: it is not.
        """
        if not self.ok:
            raise CommandFailed(self)
        return self


class CommandFailed(Exception):
    """A command, run with `check`, that did not exit with 0.

    Attributes:
        done: how it ended.
    """

    def __init__(self, done: Done) -> None:
        said = done.error_text.strip() or done.text.strip()
        super().__init__(f"{done.ending}: {said[-_SHOWN:]}" if said else done.ending)
        self.done = done

    def __reduce__(self) -> "tuple[type[CommandFailed], tuple[Done]]":
        return CommandFailed, (self.done,)


class SandboxGone(InvalidState):
    """The sandbox, or the whole host of it, is not there any more: start another one.

    Attributes:
        done: of a command that was running in it, what is known of it.
    """

    prefix = ""
    default_reason = "environment_stopped"
    done: Done | None = None


class Output(NamedTuple):
    """What a command wrote, as `Done` has it."""

    stdout: bytes
    stderr: bytes
    dropped: dict[str, int]
    gap_at: dict[str, int]
    incomplete: bool = False


NO_OUTPUT = Output(b"", b"", {"stdout": 0, "stderr": 0}, {})

GONE = frozenset({"container_gone", "environment_stopped", "runtime_exited", "shutting_down", "unknown_environment"})
"""Reasons of errors that mean it."""


def done_of(ended: Ran | ExitRecord, output: Output = NO_OUTPUT) -> Done:
    """What a command has come to.

    Parameters:
        output: what it wrote, where that is not in its answer.

    Raises:
        SandboxGone: it has ended with its sandbox.
    """
    if ended.signal is not None:
        code = _SIGNALLED + ended.signal
    else:
        code = _UNKNOWN if ended.exit_code is None else ended.exit_code
    done = Done(
        exit_code=code,
        signal=ended.signal,
        reason=ended.reason or "unknown",
        stdout=output.stdout,
        stderr=output.stderr,
        dropped=output.dropped,
        gap_at=output.gap_at,
        usage=ended.usage,
        oom_kills=0 if ended.oom_kills is UNSET else ended.oom_kills,
        group={} if ended.group is UNSET else ended.group,
        duration=(ended.timings.get("exited", 0) - ended.timings.get("started", 0)) / 1e6,
        incomplete=output.incomplete,
    )
    if ended.reason == "container_gone":
        gone = SandboxGone("the command has ended with its container", "container_gone")
        gone.done = done
        raise gone
    return done


def not_started(error: ExecFailed) -> Done:
    """What a command that did not start has come to.

    Raises:
        ExecFailed: the same: it is not what was asked for that is in the way.
    """
    if error.reason not in _CALLERS:
        raise error
    message = str(error).removeprefix(ExecFailed.prefix)
    return Done(exit_code=_NOT_STARTED.get(error.reason, _OTHERWISE_NOT_STARTED), reason=error.reason, error=message)


def _name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"
