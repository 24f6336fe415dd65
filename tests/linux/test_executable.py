"""What a file's first bytes say of the program in it, in words."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw import limits
from fastclaw.linux.executable import Finding, interpreter_of, loader_of, why_refused
from tests import odd_programs


def elf(machine: int, order: str = "little") -> bytes:
    """The head of an ELF file, to the end of e_machine."""
    data = 2 if order == "big" else 1
    return b"\x7fELF" + bytes([2, data, 1]) + bytes(9) + (2).to_bytes(2, order) + machine.to_bytes(2, order)  # type: ignore[arg-type]


def found(
    depth: int = 0, *, error: int = 0, name: str = "/work/x", head: bytes = b"", is_loader: bool = False
) -> Finding:
    return Finding(depth, is_loader, error, name, head)


@pytest.mark.parametrize(
    ("finding", "words"),
    [
        (found(1, error=errno.ENOENT, name="/no/such/sh"), "its interpreter '/no/such/sh' does not exist"),
        (found(1, error=errno.ENOTDIR, name="/etc/passwd/sh"), "its interpreter '/etc/passwd/sh' does not exist"),
        (found(1, error=errno.ENOENT, name="/bin/sh\r"), "line 1 ends with a carriage return"),
        (found(1, error=errno.EISDIR, name="/tmp"), "its interpreter '/tmp' is a directory"),
        (found(1, error=errno.ENXIO, name="/dev/null"), "its interpreter '/dev/null' is no regular file"),
        (found(1, error=errno.EACCES, name="/plain"), "its interpreter '/plain' may not be executed"),
        (found(1, name="/work/sh", head=elf(183)), "its interpreter '/work/sh' is a program for aarch64"),
        (found(1, name="/work/sh", head=b"echo"), "its interpreter '/work/sh' is no program"),
        (found(1, error=errno.ENOENT, name="/lib64/ld.so", is_loader=True), "its loader '/lib64/ld.so' does not exist"),
        (
            found(2, error=errno.ENOENT, name="/lib/ld.so", is_loader=True),
            "its interpreter's loader '/lib/ld.so' does not",
        ),
        (found(error=errno.EISDIR), "is a directory"),
        (found(error=errno.EACCES), "may not be executed by this user"),
        (found(head=elf(183)), "is a program for aarch64"),
        (found(head=elf(22, "big")), "is a program for s390x"),
        (found(head=elf(4321)), "is a program for machine 4321"),
        (found(head=elf(62)[:12]), "is a program for no machine (it is cut short)"),
        (found(head=b"\xef\xbb\xbf#!/bin/sh\n"), "begins with a UTF-8 byte order mark"),
        (found(head=b"\xff\xfe#\0!\0"), "is UTF-16 text"),
        (found(head=b"\xfe\xff\0#\0!"), "is UTF-16 text"),
        (found(head=b"\xcf\xfa\xed\xfe\x0c\0\0\1"), "is a program for macOS"),
        (found(head=b"\xca\xfe\xba\xbe\0\0\0\2"), "is a program for macOS"),
        (found(head=b"MZ\x90\0"), "is a program for Windows"),
        (found(1, name="/work/sh", head=b"\0asm\1\0\0\0"), "its interpreter '/work/sh' is a program for WebAssembly"),
        (found(head=elf(62)[:16] + b"\1\0" + elf(62)[18:]), "is an object file; link it"),
        (found(head=b"echo hi\n"), "is no program and has no #! line"),
    ],
)
def test_what_is_wrong_is_said(finding: Finding, words: str) -> None:
    """ericc-ch/copilot-api#137, alpinelinux/docker-alpine#404: hours go into PATH and modes; it is the interpreter."""
    said = why_refused(finding, is_format=not finding.error)
    assert said is not None
    assert said.startswith(words)


@pytest.mark.parametrize(
    "finding",
    [
        found(error=errno.ENOENT),
        found(error=errno.EMFILE),
        found(name=""),
        found(head=b"#!/bin/sh\n"),
        found(1, error=errno.EMFILE, name="/bin/sh"),
        found(1, name="/bin/sh"),
    ],
    ids=["missing", "no descriptors", "nothing looked at", "a script", "no descriptors for the next", "unreadable"],
)
def test_where_nothing_is_seen_nothing_is_made_up(finding: Finding) -> None:
    assert why_refused(finding, is_format=True) is None


@pytest.mark.parametrize("depth", [0, 1])
def test_what_is_in_a_file_is_no_cause_where_the_way_to_it_was_refused(depth: int) -> None:
    assert why_refused(found(depth, head=elf(62)), is_format=False) is None


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"#!/bin/sh\n", "/bin/sh"),
        (b"#! \t/bin/sh\t-x y\n", "/bin/sh"),
        (b"#!/bin/sh\r\n", "/bin/sh\r"),
        (b"#!/bin/sh", "/bin/sh"),
        (b"#!/bin/\xff\n", "/bin/\\xff"),
        (b"#!\n/bin/sh", None),
        (b"#", None),
        (b"echo", None),
        (b"", None),
    ],
)
def test_the_interpreter_of_a_script(head: bytes, name: str | None) -> None:
    assert interpreter_of(head) == name


@pytest.mark.parametrize("machine", odd_programs.MACHINES)
def test_the_loader_of_a_program(machine: str) -> None:
    assert loader_of(odd_programs.elf(machine, b"/lib/ld.so")) == "/lib/ld.so"
    assert loader_of(odd_programs.elf(machine)) is None
    assert loader_of(odd_programs.elf(machine, b"")) is None


@given(st.binary(max_size=96), st.integers(0, 200))
def test_no_head_is_too_odd_to_be_looked_at(noise: bytes, at: int) -> None:
    program = odd_programs.elf("x86_64", b"/lib/ld.so")
    for head in (
        noise,
        b"#!" + noise,
        b"\x7fELF" + noise,
        program[:at] + noise + program[at + len(noise) :],
        program[:at],
    ):
        for name in (interpreter_of(head), loader_of(head)):
            assert name is None or 0 < len(name) <= 4 * limits.PATH_BYTES
        why_refused(Finding(0, False, 0, "x", head), is_format=True)
