"""Whether a sandbox is still there, where a command of it was killed, or a call about one has failed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastclaw.client import Environment
from fastclaw.errors import FastclawError, InvalidState, IoError
from fastclaw.lifecycle import EnvironmentState
from fastclaw.sandbox.done import GONE, Done, SandboxGone
from fastclaw.sandbox.raised import raised

_MAY_BE_ITS_END = frozenset({"killed", "signaled", "unknown"})
"""Reasons of commands that end with their sandbox. The last is of one whose end was not seen before all was closed."""
_ENDED_WITH_IT = "the command has ended with its sandbox"


class Presence:
    """Looks for a sandbox among those that there are, since a process tells nothing of why it is not known."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    async def _has_ended(self) -> bool:
        name = self._environment.info.environment
        try:
            listed = await self._environment.client.environment_list()
        except FastclawError as error:
            return error.reason in GONE
        return not any(one.environment == name and one.state != EnvironmentState.STOPPING.value for one in listed)

    async def check(self, done: Done) -> Done:
        """The same.

        Raises:
            SandboxGone: the command has ended with its sandbox.
        """
        if done.reason in _MAY_BE_ITS_END and await self._has_ended():
            gone = SandboxGone(_ENDED_WITH_IT)
            gone.done = done
            raise gone
        return done

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Within it, what fails because the sandbox has ended is a `SandboxGone`."""
        try:
            with raised():
                yield
        except SandboxGone:
            raise
        except (InvalidState, IoError) as error:
            if await self._has_ended():
                raise SandboxGone(_ENDED_WITH_IT) from error
            raise
