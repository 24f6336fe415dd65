"""`fastclaw.sandbox` without `await`: the same names, from any thread, with or without an event loop, in notebooks too.

    with Host() as host:
        with host.start("python:3.12") as box:
            print(box.run(["python", "-V"]).text)

The work is done on one event loop of the process, in a thread of its own. What each call does and raises is said at its
namesake in `fastclaw.sandbox`.
"""

import functools
import os
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from fastclaw import sandbox
from fastclaw.runtime import EnvironmentInfo
from fastclaw.sandbox import CommandFailed, Done, FileTooLarge, Network, Progress, SandboxGone, Workspace, process
from fastclaw.sandbox.facts import SandboxFacts
from fastclaw.sandbox.loop_thread import loop_thread

__all__ = [
    "CommandFailed",
    "Done",
    "FileTooLarge",
    "Host",
    "Network",
    "Process",
    "Progress",
    "Sandbox",
    "SandboxGone",
    "Workspace",
]

Of = TypeVar("Of")
P = ParamSpec("P")
R = TypeVar("R")
W = TypeVar("W")


class _Sync(Generic[Of]):
    """Stands for an object of the loop."""

    def __init__(self, of: Of) -> None:
        self._of = of
        self._pid = os.getpid()

    @property
    def _is_here(self) -> bool:
        """Whether this is no copy in a child of fork(2), where leaving a `with` ends nothing that is the parent's."""
        return self._pid == os.getpid()

    @property
    def asynchronous(self) -> Of:
        """What it stands for, of `fastclaw.sandbox`; to be used on the loop thread (`LoopThread.bring`)."""
        return self._of

    def __repr__(self) -> str:
        return repr(self._of)


def _call(method: Callable[Concatenate[Of, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[Any, P], R]:
    """The same method, which waits for its end."""

    @functools.wraps(method)
    def call(stands: _Sync[Of], /, *args: P.args, **kwargs: P.kwargs) -> R:
        if not stands._is_here:
            raise RuntimeError("it is of the process that made it: a child of fork() has to enter a Host of its own")
        return loop_thread().call(method(stands._of, *args, **kwargs))

    return call


def _made(
    method: Callable[Concatenate[Of, P], Coroutine[Any, Any, R]], stand: Callable[[R], W]
) -> Callable[Concatenate[Any, P], W]:
    """The same for a method that brings something for which another class stands."""
    waited_for = _call(method)

    @functools.wraps(method)
    def call(stands: _Sync[Of], /, *args: P.args, **kwargs: P.kwargs) -> W:
        return stand(waited_for(stands, *args, **kwargs))

    return call


class _Left(_Sync[Of]):
    """What is closed where its `with` is left."""

    close: Callable[[], None]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_here:
            self.close()


class Input(_Sync[process.Input]):
    """Stdin of a process."""

    write = _call(process.Input.write)
    close = _call(process.Input.close)


class Output(_Sync[process.Output]):
    """Stdout or stderr of a process: iterate over it for its lines, or read what there is."""

    read = _call(process.Output.read)
    readline = _call(process.Output.readline)

    def __iter__(self) -> Iterator[bytes]:
        """Its lines."""
        while line := self.readline():
            yield line


class Process(_Left[sandbox.Process]):
    """A process that runs in a sandbox. As a context manager it is killed with its tree where it is left.

    Attributes:
        id: its name at the host.
        cmd: what was asked for.
        stdin, stdout, stderr: its streams; with a terminal, stdout has everything.
    """

    def __init__(self, of: sandbox.Process) -> None:
        super().__init__(of)
        self.id = of.id
        self.cmd = of.cmd
        self.stdin = Input(of.stdin)
        self.stdout = Output(of.stdout)
        self.stderr = Output(of.stderr)

    wait = _call(sandbox.Process.wait)
    kill = _call(sandbox.Process.kill)
    signal = _call(sandbox.Process.signal)
    resize = _call(sandbox.Process.resize)
    leave = _call(sandbox.Process.leave)
    close = _call(sandbox.Process.close)


class Sandbox(SandboxFacts, _Left[sandbox.Sandbox]):
    """A sandbox that is up; as a context manager, it ends when it is left.

    Attributes:
        info: all that is known of it since its start, or its last reset.
    """

    @property
    def info(self) -> EnvironmentInfo:
        """What the answer to its start, or its last reset, says."""
        return self._of.info

    run = _call(sandbox.Sandbox.run)
    exec = _made(sandbox.Sandbox.exec, Process)
    read = _call(sandbox.Sandbox.read)
    read_text = _call(sandbox.Sandbox.read_text)
    write = _call(sandbox.Sandbox.write)
    stat = _call(sandbox.Sandbox.stat)
    exists = _call(sandbox.Sandbox.exists)
    list = _call(sandbox.Sandbox.list)
    mkdir = _call(sandbox.Sandbox.mkdir)
    remove = _call(sandbox.Sandbox.remove)
    move = _call(sandbox.Sandbox.move)
    put = _call(sandbox.Sandbox.put)
    get = _call(sandbox.Sandbox.get)
    read_tar = _call(sandbox.Sandbox.read_tar)
    write_tar = _call(sandbox.Sandbox.write_tar)
    reset = _call(sandbox.Sandbox.reset)
    health = _call(sandbox.Sandbox.health)
    close = _call(sandbox.Sandbox.close)


class Host(_Left[sandbox.Host]):
    """Where sandboxes are started; entered, it is up, and left, it is gone with all of them.

    Parameters:
        runtime, url, storage, options: as of `fastclaw.sandbox.Host`.
    """

    def __init__(
        self, *, runtime: str | None = None, url: str | None = None, storage: str | None = None, **options: Any
    ) -> None:
        super().__init__(sandbox.Host(runtime=runtime, url=url, storage=storage, **options))

    def __enter__(self) -> Self:
        self._pid = os.getpid()
        thread = loop_thread()
        thread.call(self._of.__aenter__())
        thread.close_at_end(self._of.close)
        return self

    def close(self) -> None:
        """End it, with all its sandboxes; at the latest at the end of the program. Idempotent."""
        if self._is_here:
            thread = loop_thread()
            thread.call(self._of.close())
            thread.forget(self._of.close)

    @property
    def warnings(self) -> "list[str]":
        """Lines for people: what is otherwise than one will think."""
        return self._of.warnings

    start = _made(sandbox.Host.start, Sandbox)
    pool = _call(sandbox.Host.pool)
    pull = _call(sandbox.Host.pull)
    build = _call(sandbox.Host.build)
    load = _call(sandbox.Host.load)
    list = _call(sandbox.Host.list)
    health = _call(sandbox.Host.health)
