"""Archives between the engine and the contract: what is read of them, and what is refused."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import pytest

from fastclaw import environment_limits
from fastclaw.engine.rest_lane.archives import (
    Member,
    Refused,
    below,
    checked,
    excluder,
    members_of,
    new_member,
    packed,
    stat_of,
)
from fastclaw.processes.file_helper import BAD_ARCHIVE, OUTSIDE, TOO_LARGE, UNSUPPORTED


def info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Member:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return Member(made, b"x" if kind == tarfile.REGTYPE else b"")


def names(members: list[Member]) -> list[str]:
    return [member.info.name for member in members]


def test_what_is_packed_is_read_again() -> None:
    archive = packed([new_member("d", 0o711, None), new_member("d/f", 0o640, b"content")])
    directory, file = members_of(archive)
    assert (directory.info.isdir(), directory.info.mode) == (True, 0o711)
    assert (file.info.name, file.info.mode, file.data) == ("d/f", 0o640, b"content")


def test_the_members_of_a_directory_are_told_beneath_it() -> None:
    members = [
        info("top", tarfile.DIRTYPE),
        info("top/f"),
        info("top/d", tarfile.DIRTYPE),
        info("top/d/hard", tarfile.LNKTYPE, "top/f"),
        info("top/device", tarfile.CHRTYPE),
        info("top/link", tarfile.SYMTYPE, "/anywhere"),
        info("topmost"),
    ]
    found = below(packed(members), excluder(["nothing"]))
    assert names(found) == ["f", "d", "d/hard", "link"]
    assert [member.info.linkname for member in found] == ["", "", "f", "/anywhere"]
    assert names(below(packed([info("d/one")]), excluder([]))) == ["one"]


@pytest.mark.parametrize(
    ("pattern", "gone"),
    [
        ("*.o", {"a/x.o"}),
        ("a", {"a", "a/x.o", "a/b/c"}),
        ("/a/b", {"a/b/c"}),
        ("a/*", {"a/x.o", "a/b/c"}),
        ("**/c", {"a/b/c", "c"}),
        ("?", {"a", "a/x.o", "a/b/c", "c"}),
        ("[!b-z]", {"a", "a/x.o", "a/b/c"}),
        ("keep\\[1]", {"keep[1]"}),
        ("keep[[]1]", {"keep[1]"}),
        ("k*", {"keep[1]"}),
        (".", set()),
    ],
)
def test_patterns_are_those_of_the_file_helper(pattern: str, gone: set[str]) -> None:
    excluded = excluder([pattern])
    assert {name for name in ("a", "a/x.o", "a/b/c", "c", "keep[1]") if excluded(name)} == gone


def test_a_callers_archive_is_written_anew() -> None:
    members = [info("./d//f"), info("./", tarfile.DIRTYPE), info("link", tarfile.SYMTYPE, "d"), info("link/g")]
    assert names(checked(packed(members))) == ["d/f", "link", "link/g"]


@pytest.mark.parametrize(
    ("members", "code", "name"),
    [
        ([info("../evil")], OUTSIDE, "../evil"),
        ([info("/evil")], OUTSIDE, "/evil"),
        ([info("up", tarfile.SYMTYPE, ".."), info("up/evil")], OUTSIDE, "up/evil"),
        ([info("out", tarfile.SYMTYPE, "/tmp"), info("out/evil")], OUTSIDE, "out/evil"),
        ([info("a", tarfile.SYMTYPE, "b"), info("b", tarfile.SYMTYPE, ".."), info("a/x/evil")], OUTSIDE, "a/x/evil"),
        ([info("loop", tarfile.SYMTYPE, "loop"), info("loop/x")], OUTSIDE, "loop/x"),
        ([info("hard", tarfile.LNKTYPE, "../x")], OUTSIDE, "hard"),
        ([info("up", tarfile.SYMTYPE, ".."), info("hard", tarfile.LNKTYPE, "up/x")], OUTSIDE, "hard"),
        ([info("device", tarfile.BLKTYPE)], UNSUPPORTED, "device"),
    ],
)
def test_what_would_go_elsewhere_is_refused_by_name(members: list[Member], code: int, name: str) -> None:
    with pytest.raises(Refused) as raised:
        checked(packed([info("before"), *members]))
    assert (raised.value.code, raised.value.name, raised.value.members) == (code, name, len(members))


def test_a_link_that_is_replaced_leads_nowhere_any_more() -> None:
    members = [info("a", tarfile.SYMTYPE, ".."), info("a", tarfile.DIRTYPE), info("a/f")]
    assert names(checked(packed(members))) == ["a", "a", "a/f"]


WHOLE = packed([info("f"), info("g")])


@pytest.mark.parametrize("archive", [b"", b"no archive" * 100, WHOLE[:700], WHOLE[:2048], b"\x1f\x8b" + WHOLE])
def test_an_archive_that_lies_is_none(archive: bytes) -> None:
    with pytest.raises(Refused) as raised:
        checked(archive)
    assert raised.value.code == BAD_ARCHIVE


def test_a_sparse_file_does_not_become_larger_than_an_answer() -> None:
    made = tarfile.TarInfo("f")
    made.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "f",
        "GNU.sparse.realsize": str(environment_limits.MAX_FILE_INLINE_BYTES + 1),
    }
    data = b"1\n0\n1\n".ljust(512, b"\0") + b"x"
    with pytest.raises(Refused) as raised:
        checked(packed([Member(made, data)]))
    assert (raised.value.code, raised.value.name) == (TOO_LARGE, "f")


def test_the_beginning_of_an_archive_tells_its_first_member() -> None:
    archive = packed([Member(tarfile.TarInfo("f"), b"x" * 100_000)])
    first = next(members_of(archive[:2048], is_cut=True))
    assert (first.info.size, first.data) == (100_000, b"")
    assert list(members_of(b"", is_cut=True)) == []


@pytest.mark.parametrize(
    ("text", "wanted"), [("1.5", 1_500_000_000), ("7", 7_000_000_000), ("1.123456789", 1_123_456_789)]
)
def test_times_are_exact(text: str, wanted: int) -> None:
    made: Any = tarfile.TarInfo("f")
    made.pax_headers = {"mtime": text}
    [member] = members_of(packed([Member(made, b"")]))
    assert stat_of(member.info).mtime_ns == wanted


def test_an_archive_that_is_packed_has_an_end() -> None:
    with tarfile.open(fileobj=io.BytesIO(packed([]))) as opened:
        assert opened.getnames() == []
