"""What the file helper is told, and what its words and codes mean. The real one is in tests/spawner/test_files_*.py."""

from __future__ import annotations

import base64
import errno

import pytest
from msgspec import UNSET

from fastclaw import environment_limits
from fastclaw.errors import REASONS, InvalidParams
from fastclaw.files import ListDir, MakeDir, Move, ReadFile, ReadTar, Remove, StatFile, WriteFile, WriteTar
from fastclaw.processes import file_helper
from fastclaw.processes.file_helper import Outcome, content, content_of, error_of, failure_of, read_outcome


def test_each_call_has_its_words() -> None:
    for words, wanted in (
        (
            file_helper.read_words(ReadFile(path="f")),
            ["read", "f", "0", str(environment_limits.FILE_INLINE_BYTES), "whole"],
        ),
        (file_helper.read_words(ReadFile(path="f", offset=0, limit=5)), ["read", "f", "0", "5", "part"]),
        (file_helper.read_words(ReadFile(path="f", stream=True)), ["read", "f", "0", str(2**63 - 1), "whole"]),
        (file_helper.read_words(ReadFile(path="f", limit=7, stream=True)), ["read", "f", "0", "7", "whole"]),
        (file_helper.write_words(WriteFile(path="f", mode=0o644, parents=True), 3), ["write", "f", "420", "3", "p"]),
        (file_helper.write_words(WriteFile(path="f", atomic=True), None), ["write", "f", "-", "-", "a"]),
        (file_helper.stat_words(StatFile(path="f")), ["stat", "f", "follow"]),
        (file_helper.stat_words(StatFile(path="f", follow=False)), ["stat", "f", "link"]),
        (file_helper.list_words(ListDir(path="d", limit=3)), ["list", "d", "3", "-"]),
        (
            file_helper.list_words(ListDir(path="d", after="YgoJ")),
            ["list", "d", str(environment_limits.DIR_ENTRIES), "620a09"],
        ),
        (file_helper.make_words(MakeDir(path="d", parents=True, exist_ok=True)), ["mkdir", "d", "-", "pe"]),
        (file_helper.remove_words(Remove(path="d", recursive=True)), ["remove", "d", "r"]),
        (file_helper.move_words(Move(path="a", to="b")), ["move", "a", "b", "-"]),
        (file_helper.move_words(Move(path="a", to="b", overwrite=True)), ["move", "a", "b", "o"]),
        (file_helper.pack_words(ReadTar(path="d", exclude=["*.o"])), ["pack", "d", "*.o"]),
        (file_helper.unpack_words(WriteTar(path="d")), ["unpack", "d"]),
    ):
        assert words == wanted


def test_an_answer_has_no_more_than_it_can_have() -> None:
    most = environment_limits.MAX_FILE_INLINE_BYTES
    assert file_helper.read_limit(ReadFile(path="f", limit=most)) == most
    with pytest.raises(InvalidParams) as raised:
        file_helper.read_limit(ReadFile(path="f", limit=most + 1))
    assert raised.value.data["path"] == "$.limit"
    assert file_helper.read_limit(ReadFile(path="f", limit=most + 1, stream=True)) == most + 1


@pytest.mark.parametrize("after", ["x", "Yg", "ключ"])
def test_a_page_begins_where_an_answer_said(after: str) -> None:
    with pytest.raises(InvalidParams) as raised:
        file_helper.list_words(ListDir(path="d", after=after))
    assert raised.value.data["path"] == "$.after"


def test_a_nul_is_in_no_path() -> None:
    for request, path in ((StatFile(path="a\0b"), "$.path"), (Move(path="a", to="b\0"), "$")):
        with pytest.raises(InvalidParams) as raised:
            file_helper.check_request(request, [request.path, getattr(request, "to", "")])
        assert raised.value.data["path"] == path


def test_content_comes_as_text_or_base64_and_not_as_both() -> None:
    assert content_of(WriteFile(path="f")) == b""
    assert content_of(WriteFile(path="f", text="é\0")) == "é\0".encode()
    assert content_of(WriteFile(path="f", base64="/w==")) == b"\xff"
    assert content_of(WriteTar(path="f", base64="/w==")) == b"\xff"
    for request, path in (
        (WriteFile(path="f", text="a", base64="YQ=="), "$.base64"),
        (WriteFile(path="f", text="a", stream=True), "$.text"),
        (WriteFile(path="f", base64="YQ==", stream=True), "$.base64"),
        (WriteTar(path="f", base64="YQ==", stream=True), "$.base64"),
        (WriteFile(path="f", base64="YQ"), "$.base64"),
        (WriteFile(path="f", base64="ключ"), "$.base64"),
        (WriteFile(path="f", text="\ud800"), "$.text"),
    ):
        with pytest.raises(InvalidParams) as raised:
            content_of(request)
        assert raised.value.data["path"] == path


def test_an_outcome_is_read_or_there_is_none() -> None:
    line = b"2\t3\t4\twhy\ta\tname\n\n"
    assert read_outcome(line) == Outcome(2, 3, 4, "why", "a\tname\n")
    assert read_outcome(b"0\t0\t0\t\t\xff\n") == Outcome(0, 0, 0, "", "\ufffd")
    for broken in (
        b"",
        b"Killed\n",
        b"0\t0\t0\t\n",
        b"-1\t0\t0\t\t\n",
        b"0\t" + b"9" * 30 + b"\t0\t\t\n",
        b"\t\t\t\t\n",
    ):
        assert read_outcome(broken) is None


def test_every_code_has_a_reason_of_the_contract() -> None:
    assert {failure_of(code).reason for code in range(1, 256)} <= set(REASONS)
    for code, reason in (
        (errno.ENOENT, "not_found"),
        (errno.EACCES, "permission_denied"),
        (errno.EISDIR, "is_directory"),
        (errno.ENOTDIR, "not_directory"),
        (errno.EEXIST, "exists"),
        (errno.ENOSPC, "no_space"),
        (errno.EDQUOT, "no_space"),
        (errno.EFBIG, "too_large"),
        (errno.EIO, "io_error"),
    ):
        assert failure_of(code)[:2] == (reason, code)
    assert failure_of(file_helper.TOO_LARGE)[:2] == ("too_large", errno.EFBIG)
    assert failure_of(file_helper.OUTSIDE)[:2] == ("outside", None)
    assert failure_of(file_helper.USAGE)[:2] == ("io_error", None)


def test_an_error_has_the_path_as_it_was_asked_for_and_what_was_done() -> None:
    error = error_of(ReadFile(path="./a//b"), Outcome(errno.ENOENT, 0, 0, "", ""))
    assert str(error) == "io error: ./a//b: no such file or directory"
    assert error.data == {"errno": errno.ENOENT, "path": "./a//b"}
    error = error_of(ReadFile(path="f"), Outcome(file_helper.TOO_LARGE, 77, 0, "", ""))
    assert error.data == {"errno": errno.EFBIG, "path": "f", "size": 77}
    error = error_of(WriteTar(path="d"), Outcome(file_helper.OUTSIDE, 3, 99, "", "../x"))
    assert (error.reason, error.data["name"], error.data["members"], error.data["written"]) == (
        "outside",
        "../x",
        3,
        99,
    )
    error = error_of(WriteFile(path="f"), Outcome(errno.ENOSPC, 0, 10, "", ""))
    assert (error.reason, error.data["written"]) == ("no_space", 10)


def test_content_is_text_where_that_is_shorter_on_the_wire() -> None:
    assert content(b"", 0).text == ""
    assert content("é\n".encode(), 3).text == "é\n"
    assert content(b"\xff", 9) == content(b"\xff", 9)
    assert (content(b"\xff", 9).text, content(b"\xff", 9).base64, content(b"\xff", 9).size) == (None, "/w==", 9)
    zeros = content(b"\0" * 5000, 5000)  # each of them is six bytes of JSON
    assert zeros.text is None
    assert zeros.base64 is not UNSET
    assert base64.b64decode(zeros.base64) == b"\0" * 5000


def test_a_page_is_told_to_have_a_next_where_there_is_more() -> None:
    data = b"f 1 420 2 3 4 5\0a\0\0l 1 511 2 3 1 -6\0b\0to\xff\0"
    page = file_helper.page_of(data, 3)
    assert [entry.name for entry in page.entries] == ["a", "b"]
    first, second = page.entries
    assert (first.type, first.size, first.mode, first.uid, first.gid, first.nlink, first.mtime_ns) == (
        "file",
        1,
        420,
        2,
        3,
        4,
        5,
    )
    assert (second.type, second.target, second.mtime_ns) == ("link", "to\ufffd", -6)
    assert page.next == base64.b64encode(b"b").decode()
    assert file_helper.page_of(data, 2).next is UNSET
    assert file_helper.page_of(b"", 0).entries == []
