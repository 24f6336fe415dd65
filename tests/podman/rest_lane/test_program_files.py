"""What an engine's archive says of a file, and how often it is asked; with a real engine in test_start_proof.py."""

from __future__ import annotations

import errno
import io
import tarfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.podman.rest_lane.program_files import Seen, explained, first_entry
from tests.podman.rest_rig import NO_CONTAINER, answer, fake_engine, spec

if TYPE_CHECKING:
    import asyncio
    from pathlib import Path

    from tests.podman.rest_rig import Request


def archive(kind: bytes = tarfile.REGTYPE, *, mode: int = 0o755, data: bytes = b"#!/bin/x\n", name: str = "x") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.mode, member.size = kind, mode, len(data)
        tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("tar", "seen"),
    [
        (archive(), Seen(0, b"#!/bin/x\n")),
        (archive()[:515], Seen(0, b"#!/")),
        (archive(name="n" * 300), Seen(0, b"#!/bin/x\n")),
        (archive(mode=0o644), Seen(errno.EACCES, b"#!/bin/x\n")),
        (archive(tarfile.DIRTYPE, data=b""), Seen(errno.EISDIR, b"")),
        (archive(tarfile.FIFOTYPE, data=b""), Seen(errno.ENXIO, b"")),
        (bytes(1024), Seen(errno.ENXIO, b"")),
        (b"", Seen(errno.ENXIO, b"")),
    ],
    ids=["a file", "cut", "a long name", "not executable", "a directory", "a FIFO", "no file", "nothing"],
)
def test_the_first_entry_of_an_archive(tar: bytes, seen: Seen) -> None:
    assert first_entry(tar) == seen


@given(st.binary(max_size=64), st.integers(0, 600))
def test_no_archive_is_too_odd(noise: bytes, at: int) -> None:
    tar = archive(name="n" * 120)
    first_entry(tar[:at] + noise + tar[at + len(noise) :])
    first_entry(tar[:at])


async def test_the_engine_is_asked_a_bounded_number_of_times(short_dir: Path) -> None:
    async def serve(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(NO_CONTAINER)

    refused = ExecFailed("x: not found", "not_found")
    async with fake_engine(short_dir, serve) as engine:
        path = ":".join(f"/{n}" for n in range(1_000))
        assert await explained(refused, engine.calls, "c", spec("x", env={"PATH": path})) is refused
        assert len(engine.asked) == limits.PROGRAM_LOOKS


async def test_scripts_that_are_each_others_interpreters_are_followed_as_far_as_by_the_kernel(
    short_dir: Path,
) -> None:
    body = archive(data=b"#!/x\n")

    async def serve(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(200, body))

    refused = ExecFailed("x: too many levels", "not_found")
    async with fake_engine(short_dir, serve) as engine:
        assert await explained(refused, engine.calls, "c", spec("/x")) is refused
        assert len(engine.asked) == limits.PROGRAM_DEPTH + 1


@pytest.mark.parametrize("reason", ["too_long", "container_gone", "engine_error"])
async def test_what_is_not_about_a_file_is_left_alone(short_dir: Path, reason: str) -> None:
    async def serve(request: Request, writer: asyncio.StreamWriter) -> None:
        raise AssertionError(request)

    refused = ExecFailed("x", reason)
    async with fake_engine(short_dir, serve) as engine:
        assert await explained(refused, engine.calls, "c", spec("/x")) is refused
        assert engine.asked == []
