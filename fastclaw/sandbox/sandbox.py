"""A sandbox, for whoever wants to run commands in it: commands, files, and processes that go on."""

import asyncio
import errno
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, Self

import aiofiles

from fastclaw import limits
from fastclaw.client import Environment
from fastclaw.client.answers import given
from fastclaw.errors import ExecFailed
from fastclaw.files import DirEntry, FileStat
from fastclaw.runtime import EnvironmentInfo, HealthStatus, Keep, OnDisconnect, OnLimit, Orphans
from fastclaw.sandbox.done import Done, Output, done_of, not_started
from fastclaw.sandbox.facts import SandboxFacts
from fastclaw.sandbox.presence import Presence
from fastclaw.sandbox.process import Process
from fastclaw.sandbox.raised import raised
from fastclaw.sandbox.streamed_run import OutputRule, run_by_streams
from fastclaw.sandbox.transfer import receive_directory, receive_file, send_directory, send_file
from fastclaw.sandbox.units import Size, milliseconds, size_bytes

Command = Sequence[str] | str
"""Argv; or text for a shell, `sh -c TEXT`."""

_INLINE_INPUT_BYTES = 4 * limits.MIB
"""Input that fits a line of `limits.MAX_LINE_BYTES` whatever it is: JSON makes up to six bytes of one."""


class Sandbox(SandboxFacts):
    """A sandbox that is up; as a context manager, it ends when it is left.

        async with await host.start("python:3.12") as box:
            done = await box.run(["python", "-V"])

    Paths are those inside. A relative one starts from `working_dir`. Durations are seconds; sizes are bytes or text
    such as "2g". Every call raises `SandboxGone` where the sandbox is no more, and FastclawError for what the machine
    did.

    Attributes:
        info: all that is known of it since its start, or its last reset.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._presence = Presence(environment)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def info(self) -> EnvironmentInfo:
        """What the answer to its start, or its last reset, says."""
        return self._environment.info

    # --- commands ---

    async def run(
        self,
        /,
        cmd: Command,
        *,
        input: bytes | str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        timeout: float | None = None,
        output_limit: Size = limits.RUN_OUTPUT_LIMIT_BYTES,
        keep: Keep = "ends",
        on_limit: OnLimit = "truncate",
        merge_stderr: bool = False,
        orphans: Orphans = "keep",
        drain: float = limits.DRAIN_MS / 1000,
        check: bool = False,
        limits: Mapping[str, Any] | None = None,
        template: str | None = None,
        traceparent: str | None = None,
        tracestate: str | None = None,
    ) -> Done:
        """Run a command to its end. Raises nothing for what the command did, or because it could not be started.

        Parameters:
            cmd: argv; or text for `sh -c`.
            input: what it reads on stdin, of any size; None is nothing.
            cwd: where it runs.
            env: variables besides those of the sandbox, which they win over.
            user: name or `uid[:gid]`; None is the sandbox's own.
            timeout: seconds after which its tree is ended, with the reason `timeout`.
            output_limit: bytes of each stream that are kept. `keep` says which part of a longer one: its first and last
                half (`ends`), `head` or `tail`; `on_limit` whether a longer one ends the command (`kill`).
            merge_stderr: its stderr goes to stdout, in order.
            orphans: whether what it leaves running is ended with it (`kill`).
            drain: seconds for which a stream is read after its end that something it left holds open.
            check: raise `CommandFailed` where it does not exit with 0.
            limits, template, traceparent, tracestate: as in the contract.

        Where the task is cancelled, the command is ended with its tree.

        Raises:
            CommandFailed: with `check`.
            SandboxGone: it ended with the sandbox.
        """
        data = input.encode() if isinstance(input, str) else input
        rule = OutputRule(size_bytes(output_limit), keep, on_limit, milliseconds(drain))
        more = given(limits=limits, template=template, traceparent=traceparent, tracestate=tracestate)
        params = {**_started(cwd, env, user, timeout, merge_stderr, orphans), **more}
        try:
            with raised():
                done = await self._ended(_argv(cmd), data or b"", rule, params)
        except ExecFailed as error:
            done = not_started(error)
        return done.check() if check else done

    async def _ended(self, cmd: list[str], data: bytes, rule: OutputRule, params: dict[str, Any]) -> Done:
        if len(data) <= _INLINE_INPUT_BYTES and rule.limit <= limits.MAX_RUN_OUTPUT_BYTES:
            ran = await self._environment.run(
                cmd,
                input=data or None,
                output_limit=rule.limit,
                keep=rule.keep,
                on_limit=rule.on_limit,
                drain_ms=rule.drain_ms,
                **params,
            )
            done = done_of(ran, Output(ran.stdout, ran.stderr, ran.dropped, ran.gap_at, ran.incomplete))
            return await self._presence.check(done)
        process = await self._environment.exec(cmd, **params)
        async with self._presence.watched():
            return done_of(*await run_by_streams(process, data, rule))

    async def exec(
        self,
        /,
        cmd: Command,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        timeout: float | None = None,
        stdin: bool = True,
        tty: bool = False,
        size: tuple[int, int] | None = None,
        merge_stderr: bool = False,
        orphans: Orphans = "keep",
        on_disconnect: OnDisconnect = "eof",
        key: str | None = None,
        limits: Mapping[str, Any] | None = None,
        template: str | None = None,
        traceparent: str | None = None,
        tracestate: str | None = None,
    ) -> Process:
        """Start a process that goes on; it runs when this returns.

        Parameters:
            cmd, cwd, env, user, merge_stderr, orphans: as for `run`.
            timeout: seconds after which its tree is ended.
            stdin: False gives it an empty one.
            tty: a terminal instead of pipes; `size` is its rows and columns.
            on_disconnect: what it means for the process that its streams are left, or that this program ends.
            key, limits, template, traceparent, tracestate: as in the contract.

        Raises:
            ExecFailed: with the reason why it does not run.
        """
        argv = _argv(cmd)
        params = _started(cwd, env, user, timeout, merge_stderr, orphans)
        how = given(tty=tty or None, tty_size=size, stdin=None if stdin else False)
        more = given(key=key, limits=limits, template=template, traceparent=traceparent, tracestate=tracestate)
        with raised():
            remote = await self._environment.exec(argv, **params, **how, on_disconnect=on_disconnect, **more)
        return Process(remote, argv, self._presence)

    # --- files ---

    async def read(
        self, path: str, *, user: str | None = None, offset: int | None = None, limit: Size | None = None
    ) -> bytes:
        """The content of a file.

        Parameters:
            offset: from which byte on; with it, `limit` is how much of it is wanted.
            limit: without `offset`, nothing is read of a file that is larger.

        Raises:
            FileTooLarge: it has more than `limit`.
            OSError: FileNotFoundError, IsADirectoryError, PermissionError and so on.
        """
        most = None if limit is None else size_bytes(limit)
        with raised(path):
            return await self._environment.read_file(path, user=user, offset=offset, limit=most)

    async def read_text(
        self, path: str, *, user: str | None = None, encoding: str = "utf-8", errors: str = "strict"
    ) -> str:
        """The content of a file as text. Raises as `read`, and UnicodeDecodeError."""
        return (await self.read(path, user=user)).decode(encoding, errors)

    async def write(
        self,
        path: str,
        data: bytes | str,
        *,
        user: str | None = None,
        mode: int | None = None,
        parents: bool = True,
        atomic: bool = False,
    ) -> None:
        """Write the whole content of a file.

        Parameters:
            data: bytes, or text as UTF-8.
            mode: of the file afterwards.
            parents: make missing directories.
            atomic: whoever reads sees the old content or the new one, never a part.

        Raises:
            OSError: PermissionError, IsADirectoryError and so on.
        """
        with raised(path):
            await self._environment.write_file(path, data, user=user, mode=mode, parents=parents, atomic=atomic)

    async def stat(self, path: str, *, user: str | None = None, follow: bool = True) -> FileStat:
        """What is said of a file: type, size in bytes, mode, owner, times. `follow`: of what a link leads to."""
        with raised(path):
            return await self._environment.stat(path, user=user, follow=follow)

    async def exists(self, path: str, *, user: str | None = None) -> bool:
        """Whether there is something of this name, to where a link leads."""
        try:
            await self.stat(path, user=user)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            return False
        return True

    async def list(self, path: str = ".", *, user: str | None = None) -> "list[DirEntry]":
        """The entries of a directory, in the order of their names' bytes."""
        with raised(path):
            return await self._environment.list_dir(path, user=user)

    async def mkdir(
        self,
        path: str,
        *,
        user: str | None = None,
        mode: int | None = None,
        parents: bool = True,
        exist_ok: bool = True,
    ) -> None:
        """Make a directory. `parents`: those above it, too; `exist_ok`: it may be there already."""
        with raised(path):
            await self._environment.make_dir(path, user=user, mode=mode, parents=parents, exist_ok=exist_ok)

    async def remove(self, path: str, *, user: str | None = None, recursive: bool = False) -> None:
        """Remove a file, a link, or a directory: an empty one, or with `recursive` all that is in it."""
        with raised(path):
            await self._environment.remove(path, user=user, recursive=recursive)

    async def move(self, path: str, to: str, *, user: str | None = None, overwrite: bool = False) -> None:
        """Give a file or a directory another name. `overwrite`: also where that is taken."""
        try:
            with raised(path):
                await self._environment.move(path, to, user=user, overwrite=overwrite)
        except OSError as error:  # of either name, as os.rename has it
            raise OSError(error.errno, error.strerror, path, None, to) from error

    # --- files of this host ---

    async def put(
        self,
        source: str | PathLike[str],
        path: str,
        *,
        user: str | None = None,
        exclude: Iterable[str] = (),
    ) -> None:
        """Copy a file or directory of this host into the sandbox, where it belongs to the user.

        Parameters:
            source: on this host. What is in a directory comes into the directory `path`, which is made where it is
                missing.
            path: the new name of a file; with a `/` at its end, the directory that it comes into.
            exclude: patterns of what of a directory is left out (docs/files.md).

        Raises:
            OSError: of this host or of the sandbox; its `filename` says which file.
        """
        local = Path(source)
        found = await asyncio.to_thread(local.stat)
        if S_ISDIR(found.st_mode):
            with raised(path):
                await self._environment.make_dir(path, user=user, parents=True, exist_ok=True)
                async with await self._environment.tar_writer(path, user=user) as stream:
                    await send_directory(local, stream, exclude)
            return
        if not S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", fspath(source))
        target = path + local.name if path.endswith("/") else path
        size = found.st_size or None  # what the kernel makes up has none
        async with aiofiles.open(local, "rb") as file:  # before what is there loses its content
            with raised(target):
                writer = await self._environment.file_writer(
                    target, size=size, user=user, mode=found.st_mode & 0o777, parents=True
                )
                async with writer as stream:
                    await send_file(file, stream, size)

    async def get(
        self,
        path: str,
        target: str | PathLike[str],
        *,
        user: str | None = None,
        exclude: Iterable[str] = (),
    ) -> None:
        """Copy a file or directory of the sandbox to this host, where it belongs to whoever runs this program, without
        set-user-ID bits.

        Parameters:
            path: inside. What is in a directory comes into the directory `target`, which is made where it is missing;
                what is there is replaced.
            target: on this host: the new name of a file; with a `/` at its end, the directory that it comes into.
            exclude: patterns of what of a directory is left out (docs/files.md).

        Raises:
            OSError: of this host or of the sandbox; its `filename` says which file.
        """
        found = await self.stat(path, user=user)
        if found.type == "directory":
            with raised(path):
                async with await self._environment.tar_reader(path, user=user, exclude=exclude) as stream:
                    await receive_directory(stream, Path(target))
            return
        into = fspath(target)
        local = Path(into, Path(path).name) if into.endswith("/") else Path(into)
        await asyncio.to_thread(local.parent.mkdir, parents=True, exist_ok=True)
        with raised(path):
            async with await self._environment.file_reader(path, user=user) as stream:
                await receive_file(stream, local, found.mode & 0o777)

    async def read_tar(self, path: str = ".", *, user: str | None = None, exclude: Iterable[str] = ()) -> bytes:
        """A directory, or a file, as a tar archive. `exclude`: patterns of what is left out."""
        with raised(path):
            return await self._environment.read_tar(path, user=user, exclude=exclude)

    async def write_tar(self, path: str, archive: bytes, *, user: str | None = None) -> None:
        """Unpack an archive into a directory that is there."""
        with raised(path):
            await self._environment.write_tar(path, archive, user=user)

    # --- the sandbox itself ---

    async def reset(self) -> None:
        """Bring it back to the state of its image: what runs in it is killed, what was written is gone."""
        with raised():
            await self._environment.reset()

    async def health(self) -> HealthStatus:
        """How it is, in a word, with a message and details."""
        with raised():
            return await self._environment.health()

    async def close(self) -> None:
        """End it with everything in it. Idempotent."""
        await self._environment.aclose()


def _argv(cmd: Command) -> list[str]:
    return ["sh", "-c", cmd] if isinstance(cmd, str) else list(cmd)


def _started(
    cwd: str | None,
    env: Mapping[str, str] | None,
    user: str | None,
    timeout: float | None,
    merge_stderr: bool,
    orphans: Orphans,
) -> dict[str, Any]:
    return given(
        working_dir=cwd,
        env=env,
        user=user,
        timeout_ms=None if timeout is None else milliseconds(timeout),
        merge_stderr=merge_stderr or None,
        orphans=None if orphans == "keep" else orphans,
    )
