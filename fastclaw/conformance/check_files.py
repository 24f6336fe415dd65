"""Checks of the calls for files: contents, names, directories, archives, and what is refused."""

import base64
import contextlib
import io
import tarfile
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastclaw import environment_limits, limits
from fastclaw.conformance.rig import Process, Rig, Session, drain, same
from fastclaw.conformance.runner import proves
from fastclaw.conformance.wire import IO_ERROR, data_of, expect
from fastclaw.errors import IoError

BINARY = bytes(range(256))
LARGE = 4 * limits.MIB
"""More than every buffer on the way together."""

MOMENT = 1_234_567_890


@contextlib.asynccontextmanager
async def _folder(session: Session) -> AsyncIterator[str]:
    """A directory for one check, where processes start; removed afterwards where the runtime can."""
    name = f"fastclaw-check-{uuid.uuid4().hex}"
    await session.result("make_dir", {"path": name})
    try:
        yield name
    finally:
        if session.offers("file_helper"):
            await session.result("remove", {"path": name, "recursive": True})


async def _content(session: Session, path: str, **params: Any) -> bytes:
    told = await session.result("read_file", {"path": path, **params})
    expect(isinstance(told, dict) and {"text", "size"} <= set(told), f"read_file answered {told!r}")
    data = base64.b64decode(told["base64"]) if told["text"] is None else told["text"].encode()
    return bytes(data)


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def _fails(session: Session, method: str, params: dict[str, Any], reason: str) -> dict[str, Any]:
    """`error.data` of a call that must fail with this reason, and name the path as it was asked for."""
    data = data_of(await session.error(method, params, IO_ERROR, reason))
    expect(data.get("path") == params["path"], f"data.path is {data.get('path')!r}, not {params['path']!r}")
    expect("errno" in data, f"data has no errno: {data}")
    return data


@proves("F-CONTENT")
async def _contents(rig: Rig, session: Session) -> None:
    async with _folder(session) as folder:
        for given, wanted in (
            ({"text": "ключ-🦀\n\0"}, "ключ-🦀\n\0".encode()),
            ({"text": ""}, b""),
            ({}, b""),
            ({"base64": _encoded(BINARY)}, BINARY),
            ({"base64": _encoded(BINARY * 4096)}, BINARY * 4096),
            ({"text": "shorter"}, b"shorter"),
        ):
            written = await session.result("write_file", {"path": f"{folder}/f", **given})
            expect(written.get("size") == len(wanted), f"write_file of {len(wanted)} bytes answered {written}")
            found = await _content(session, f"{folder}/f")
            expect(same(found, wanted), f"{len(found)} bytes of {len(wanted)} came back, or other ones")


@proves("F-CONTENT")
async def _as_processes_see_it(rig: Rig, session: Session) -> None:
    async with _folder(session) as folder:
        await session.result("write_file", {"path": f"{folder}/f", "text": "seen"})
        out, _ = await session.outputs([*rig.words.cat, f"{folder}/f"])
        expect(out == b"seen", f"a process reads {out!r}")


@proves("F-PART")
async def _parts(rig: Rig, session: Session) -> None:
    async with _folder(session) as folder:
        path = f"{folder}/f"
        await session.result("write_file", {"path": path, "text": "0123456789"})
        for params, wanted in (
            ({"offset": 2, "limit": 3}, b"234"),
            ({"offset": 8, "limit": 100}, b"89"),
            ({"offset": 10}, b""),
            ({"offset": 99, "limit": 1}, b""),
            ({"limit": 10}, b"0123456789"),
        ):
            found = await _content(session, path, **params)
            expect(found == wanted, f"{params} gave {found!r}")
        data = await _fails(session, "read_file", {"path": path, "limit": 9}, "too_large")
        expect(data.get("size") == 10, f"data.size is {data.get('size')!r}")
        await session.rejects(
            "read_file", {"path": path, "limit": environment_limits.MAX_FILE_INLINE_BYTES + 1}, "$.limit"
        )


@proves("F-ERRORS")
async def _errors(rig: Rig, session: Session) -> None:
    async with _folder(session) as folder:
        await session.result("write_file", {"path": f"{folder}/f", "text": "x"})
        missing, under = f"{folder}/./no-such", f"{folder}/f/x"
        for method in ("read_file", "stat", "list_dir", "read_tar", "write_tar"):
            await _fails(session, method, {"path": missing}, "not_found")
        await _fails(session, "read_file", {"path": folder}, "is_directory")
        await _fails(session, "write_file", {"path": folder, "text": "x"}, "is_directory")
        await _fails(session, "list_dir", {"path": f"{folder}/f"}, "not_directory")
        await _fails(session, "write_file", {"path": under, "text": "x"}, "not_directory")
        await _fails(session, "write_file", {"path": f"{missing}/f", "text": "x"}, "not_found")
        await _fails(session, "make_dir", {"path": folder}, "exists")
        await _fails(session, "make_dir", {"path": f"{missing}/d"}, "not_found")
        await session.rejects("read_file", {"path": "a\0b"}, "$.path")
        await session.rejects("read_file", {"path": ""}, "$.path")
        await session.rejects("write_file", {"path": f"{folder}/f", "text": "a", "base64": "YQ=="}, "$.base64")
        await session.rejects("write_file", {"path": f"{folder}/f", "base64": "no base64"}, "$.base64")


@proves("F-NAMES")
async def _names(rig: Rig, session: Session) -> None:
    async with _folder(session) as folder:
        await session.result("make_dir", {"path": f"{folder}/a/b", "parents": True})
        await session.result("make_dir", {"path": f"{folder}/a/b", "exist_ok": True})
        await session.result("write_file", {"path": f"{folder}/c/d/f", "text": "12345", "parents": True, "mode": 0o640})
        told = await session.result("stat", {"path": f"{folder}/c/d/f"})
        expect((told["type"], told["size"], told["mode"]) == ("file", 5, 0o640), f"stat answered {told}")
        expect({"uid", "gid", "mtime_ns", "nlink"} <= set(told), f"stat answered {told}")
        told = await session.result("stat", {"path": f"{folder}/a"})
        expect(told["type"] == "directory", f"stat of a directory answered {told}")


@proves("F-LIST")
async def _list(rig: Rig, session: Session) -> None:
    async with _folder(session) as folder:
        wanted = sorted(["b", "a", "ключ", "Z", "a b", "10", "9"], key=str.encode)
        for name in wanted:
            await session.result("write_file", {"path": f"{folder}/{name}", "text": name})
        for limit in (1, 3, 100):
            found: list[str] = []
            params: dict[str, Any] = {"path": folder, "limit": limit}
            while True:
                page = await session.result("list_dir", params)
                expect(len(page["entries"]) <= limit, f"{len(page['entries'])} entries on a page of {limit}")
                found += [entry["name"] for entry in page["entries"]]
                if "next" not in page or len(found) > len(wanted):
                    break
                params["after"] = page["next"]
            expect(found == wanted, f"in pages of {limit}: {found}")
        sizes = {
            entry["name"]: entry["size"] for entry in (await session.result("list_dir", {"path": folder}))["entries"]
        }
        expect(sizes == {name: len(name.encode()) for name in wanted}, f"the sizes are {sizes}")


# --- Archives ---


def _info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mtime = kind, link, size, MOMENT
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o640
    return info


def _archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _file(name: str, data: bytes = b"x") -> tuple[tarfile.TarInfo, bytes]:
    return _info(name, size=len(data)), data


TREE = (
    (_info("d", tarfile.DIRTYPE), b""),
    _file("d/f", BINARY * 300),
    _file("d/" + "n" * 150, b"a long name"),
    _file("ключ", b"a name"),
    (_info("link", tarfile.SYMTYPE, "d/f"), b""),
)


@proves("F-TAR")
async def _archives(rig: Rig, session: Session) -> None:
    async with _folder(session) as folder:
        told = await session.result("write_tar", {"path": folder, "base64": _encoded(_archive(*TREE))})
        expect(told.get("members") == len(TREE), f"write_tar answered {told}")
        found = await _content(session, f"{folder}/link")
        expect(same(found, BINARY * 300), f"the file behind the link has {len(found)} bytes")
        told = await session.result("read_tar", {"path": folder})
        with tarfile.open(fileobj=io.BytesIO(base64.b64decode(told["base64"]))) as archive:
            seen = {member.name: member for member in archive}
            expect(set(seen) == {info.name for info, _ in TREE}, f"the archive has {sorted(seen)}")
            expect(told["members"] == len(TREE), f"members is {told['members']}")
            data = archive.extractfile(seen["d/f"])
            expect(data is not None and same(data.read(), BINARY * 300), "a file in the archive has other content")
        expect(seen["link"].linkname == "d/f", f"the link leads to {seen['link'].linkname!r}")
        expect(int(seen["d/f"].mtime) == MOMENT, f"the time of a file is {seen['d/f'].mtime}")
        expect(seen["d/f"].mode & 0o777 == 0o640, f"the mode of a file is {seen['d/f'].mode:o}")


@proves("F-TAR-EXCLUDE")
async def _excluded(rig: Rig, session: Session) -> None:
    async with _folder(session) as folder:
        members = [_file(name) for name in ("a.o", "b.c", "d/a.o", "d/e/f", "e/f")]
        await session.result("write_tar", {"path": folder, "base64": _encoded(_archive(*members))})
        for exclude, left in (
            (["*.o"], {"b.c", "d", "d/e", "d/e/f", "e", "e/f"}),
            (["d"], {"a.o", "b.c", "e", "e/f"}),
            (["d/e", "*.c"], {"a.o", "d", "d/a.o", "e", "e/f"}),
        ):
            told = await session.result("read_tar", {"path": folder, "exclude": exclude})
            with tarfile.open(fileobj=io.BytesIO(base64.b64decode(told["base64"]))) as archive:
                expect(set(archive.getnames()) == left, f"without {exclude}: {archive.getnames()}")


@proves("F-TAR-WITHIN")
async def _within(rig: Rig, session: Session) -> None:
    async with _folder(session) as folder:
        inside = f"{folder}/in"
        await session.result("make_dir", {"path": inside})
        for members, name in (
            ([_file("../evil")], "../evil"),
            ([_file("/fastclaw-check-evil")], "/fastclaw-check-evil"),
            ([_file("a/../../evil")], "a/../../evil"),
            ([(_info("up", tarfile.SYMTYPE, ".."), b""), _file("up/evil")], "up/evil"),
            ([(_info("hard", tarfile.LNKTYPE, "../witness"), b"")], "hard"),
        ):
            data = await _fails(
                session, "write_tar", {"path": inside, "base64": _encoded(_archive(*members))}, "outside"
            )
            expect(data.get("name") == name, f"data.name is {data.get('name')!r}, not {name!r}")
        device = _archive((_info("device", tarfile.CHRTYPE), b""))
        data = await _fails(session, "write_tar", {"path": inside, "base64": _encoded(device)}, "unsupported")
        expect(data.get("name") == "device", f"data.name is {data.get('name')!r}")
        names = [entry["name"] for entry in (await session.result("list_dir", {"path": folder}))["entries"]]
        expect(names == ["in"], f"beside the directory there is {names}")
        await _fails(session, "stat", {"path": "/fastclaw-check-evil"}, "not_found")


@proves("F-TAR-LIES")
async def _lies(rig: Rig, session: Session) -> None:
    whole = _archive(_file("f", BINARY * 8))
    lying = bytearray(whole)
    lying[124:136] = b"%011o\0" % LARGE
    lying[148:156] = b" " * 8
    lying[148:156] = b"%06o\0 " % sum(lying[:512])
    async with _folder(session) as folder:
        for archive in (b"", b"no archive" * 100, whole[:1024], whole[:2560], bytes(lying), b"\x1f\x8b" + whole):
            await _fails(session, "write_tar", {"path": folder, "base64": _encoded(archive)}, "bad_archive")
        told = await session.result("list_dir", {"path": folder})
        expect(all(entry["size"] in (0, 2048) for entry in told["entries"]), f"a part of a file was left: {told}")


# --- What a helper in the environment adds ---


@proves("F-KINDS")
async def _kinds(rig: Rig, session: Session) -> None:
    async with _folder(session) as folder:
        members = ((_info("fifo", tarfile.FIFOTYPE), b""), (_info("loop", tarfile.SYMTYPE, "loop"), b""))
        await session.result("write_tar", {"path": folder, "base64": _encoded(_archive(*members))})
        fifo = f"{folder}/fifo"
        request = session.post("read_file", {"path": fifo})
        answer = await session.answer(request, limits.CHECK_SOON_MS)
        expect(data_of(answer.get("error") or {}).get("reason") == "not_regular", f"reading a FIFO: {answer}")
        await _fails(session, "write_file", {"path": fifo, "text": "x"}, "not_regular")
        await _fails(session, "write_file", {"path": "/dev/null", "text": "x"}, "not_regular")
        await _fails(session, "read_file", {"path": "/dev/null"}, "not_regular")
        await _fails(session, "read_file", {"path": f"{folder}/loop"}, "too_many_links")
        told = await session.result("stat", {"path": f"{folder}/loop", "follow": False})
        expect((told["type"], told.get("target")) == ("link", "loop"), f"stat of a link answered {told}")
        told = await session.result("stat", {"path": fifo})
        expect(told["type"] == "fifo", f"stat of a FIFO answered {told}")


@proves("F-ATOMIC")
async def _atomic(rig: Rig, session: Session) -> None:
    async with _folder(session) as folder:
        path = f"{folder}/f"
        await session.result("write_file", {"path": path, "text": "old", "mode": 0o604})
        await session.result("write_file", {"path": path, "text": "new", "atomic": True})
        expect(await _content(session, path) == b"new", "the content is not the new one")
        told = await session.result("stat", {"path": path})
        expect(told["mode"] == 0o604, f"its mode is {told['mode']:o}")
        stream = await session.began(
            session.post("write_file", {"path": path, "stream": True, "size": 9, "atomic": True})
        )
        stdio = await stream.stdio()
        await stdio.write(b"half")
        await stream.kill()
        expect(await _content(session, path) == b"new", "a writer that was ended has changed the file")
        names = [entry["name"] for entry in (await session.result("list_dir", {"path": folder}))["entries"]]
        expect(names == ["f"], f"left behind: {names}")


@proves("F-MOVE")
async def _moves(rig: Rig, session: Session) -> None:
    async with _folder(session) as folder:
        for name in ("a", "b"):
            await session.result("write_file", {"path": f"{folder}/{name}", "text": name})
        await _fails(session, "move", {"path": f"{folder}/no-such", "to": f"{folder}/c"}, "not_found")
        await _fails(session, "move", {"path": f"{folder}/a", "to": f"{folder}/b"}, "exists")
        await session.result("move", {"path": f"{folder}/a", "to": f"{folder}/b", "overwrite": True})
        expect(await _content(session, f"{folder}/b") == b"a", "the content did not move")
        await _fails(session, "stat", {"path": f"{folder}/a"}, "not_found")


@proves("F-REMOVE")
async def _removes(rig: Rig, session: Session) -> None:
    async with _folder(session) as folder:
        members = [_file("kept/f"), _file("d/e/f"), (_info("d/link", tarfile.SYMTYPE, "../kept"), b"")]
        await session.result("write_tar", {"path": folder, "base64": _encoded(_archive(*members))})
        await _fails(session, "remove", {"path": f"{folder}/d"}, "not_empty")
        await _fails(session, "remove", {"path": f"{folder}/no-such", "recursive": True}, "not_found")
        await session.result("remove", {"path": f"{folder}/d", "recursive": True})
        names = [entry["name"] for entry in (await session.result("list_dir", {"path": folder}))["entries"]]
        expect(names == ["kept"], f"left are {names}")
        expect(await _content(session, f"{folder}/kept/f") == b"x", "what a link led to is gone")


@proves("F-STREAM")
async def _streams(rig: Rig, session: Session) -> None:
    data = BINARY * (LARGE // len(BINARY))
    async with _folder(session) as folder:
        path = f"{folder}/f"
        await _pour(session, "write_file", {"path": path, "size": len(data)}, data)
        process = await session.began(session.post("read_file", {"path": path, "stream": True}))
        found, _ = await process.outputs()
        expect(same(found, data), f"{len(found)} bytes of {len(data)} came back, or other ones")
        process = await session.began(session.post("read_tar", {"path": folder, "stream": True}))
        archive, _ = await process.outputs()
        await session.result("make_dir", {"path": f"{folder}/copy"})
        await _pour(session, "write_tar", {"path": f"{folder}/copy"}, archive)
        told = await session.result("stat", {"path": f"{folder}/copy/f"})
        expect(told["size"] == len(data), f"the copy has {told['size']} bytes of {len(data)}")


@proves("F-STREAM")
async def _stream_errors(rig: Rig, session: Session) -> None:
    async with _folder(session) as folder:
        for method, params, data, reason in (
            ("read_file", {"path": f"{folder}/no-such"}, b"", "not_found"),
            ("write_file", {"path": f"{folder}/no-such/f"}, b"x", "not_found"),
            ("write_file", {"path": f"{folder}/f", "size": 9}, b"short", "wrong_size"),
            ("write_tar", {"path": folder}, b"no archive" * 100, "bad_archive"),
        ):
            process = await session.began(session.post(method, {**params, "stream": True}))
            await _send(process, data)
            error = (await process.wait()).get("error") or {}
            expect((error.get("reason"), error.get("path")) == (reason, params["path"]), f"{method}: {error}")


async def _send(process: Process, data: bytes) -> None:
    """Send it to one that may have ended before: that it reads no more is no error."""
    stdio, stderr = await process.stdio(), await process.stderr()
    with contextlib.suppress(IoError):
        await stdio.write(data)
        stdio.write_eof()
    await drain(stdio)
    await drain(stderr)


async def _pour(session: Session, method: str, params: dict[str, Any], data: bytes) -> Process:
    process = await session.began(session.post(method, {**params, "stream": True}))
    await process.outputs(data)
    record = await process.wait()
    expect(record.get("exit_code") == 0 and "error" not in record, f"{method} ended with {record}")
    return process


@proves("F-USER")
async def _users(rig: Rig, session: Session) -> None:
    session.needs("user")
    async with _folder(session) as folder:
        await session.error("stat", {"path": folder, "user": "no-such-user"}, -32000, "unknown_user")
        await session.rejects("stat", {"path": folder, "user": ""}, "$.user")
