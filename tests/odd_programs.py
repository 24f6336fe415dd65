"""Files that are executable and cannot be executed, each with the reason and the words of its refusal; and what a
Python that goes by another name needs."""

from __future__ import annotations

import os
import platform
import struct
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

BY_ANOTHER_NAME = {**os.environ, "PYTHONHOME": f"{sys.base_prefix}:{sys.base_exec_prefix}"}
"""The environment of one: it would look for its library beside the program that `argv[0]` names (site, 3.14)."""

MACHINES = {"x86_64": 62, "aarch64": 183}
FOREIGN = "aarch64" if platform.machine() == "x86_64" else "x86_64"


class Odd(NamedTuple):
    """One of them. `content` None: a directory."""

    content: bytes | None
    reason: str
    words: str
    mode: int = 0o755


def elf(machine: str, loader: bytes | None = None) -> bytes:
    """A 64-bit program (elf(5)) without a segment to load, and with a loader where one is named."""
    headers = 1 if loader is None else 2
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    head = struct.pack("<HHIQQQIHHHHHH", 2, MACHINES[machine], 1, 0x400078, 64, 0, 0, 64, 56, headers, 0, 0, 0)
    end = 64 + headers * 56
    named = b"" if loader is None else struct.pack("<IIQQQQQQ", 3, 4, end, 0, 0, len(loader) + 1, len(loader) + 1, 1)
    return ident + head + bytes(56) + named + (loader or b"") + b"\0" * 64


ODD = {
    "no-interpreter": Odd(b"#!/no/such/sh\n", "not_found", "its interpreter '/no/such/sh' does not exist here"),
    "crlf": Odd(b"#!/bin/sh\r\necho hi\r\n", "not_found", "line 1 ends with a carriage return"),
    "directory-for-interpreter": Odd(b"#! /tmp -x\n", "permission_denied", "its interpreter '/tmp' is a directory"),
    "no-loader": Odd(
        elf(platform.machine(), b"/no/such/ld.so"), "not_found", "its loader '/no/such/ld.so' does not exist here"
    ),
    "foreign": Odd(elf(FOREIGN), "not_executable", f"is a program for {FOREIGN}, and this machine does not run it"),
    "byte-order-mark": Odd(b"\xef\xbb\xbf#!/bin/sh\n", "not_executable", "begins with a UTF-8 byte order mark"),
    "utf16": Odd("\ufeff#!/bin/sh\n".encode("utf-16-le"), "not_executable", "is UTF-16 text"),
    "text": Odd(b"echo hi\n", "not_executable", "is no program and has no #! line"),
    "directory": Odd(None, "permission_denied", "is a directory"),
    "plain": Odd(b"#!/bin/sh\n", "permission_denied", "may not be executed by this user", 0o644),
}


def make(directory: Path) -> None:
    """All of them."""
    for name, odd in ODD.items():
        path = directory / name
        if odd.content is None:
            path.mkdir()
        else:
            path.write_bytes(odd.content)
            path.chmod(odd.mode)
