"""What the first bytes of a file say of the program in it, and why execve(2) did not take it.

execve has one word for many causes: "No such file or directory" is said of a script whose interpreter is missing and of
a program whose loader is. A spawner's child or the engine has looked at the files and reports the one that could not be
used; the words are here. Sources: execve(2), elf(5), fs/binfmt_script.c, fs/binfmt_elf.c.
"""

from __future__ import annotations

import errno
import struct
from typing import NamedTuple

from fastclaw import limits

_MACHINES = {3: "i386", 8: "mips", 21: "ppc64", 22: "s390x", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv"}
"""e_machine (elf(5), include/uapi/linux/elf-em.h)."""

_ELF = b"\x7fELF"
_ET_REL = 1
_ELF_BYTES = 20
"""To the end of e_machine."""
_SCRIPT_BYTES = 256
"""How much of a script the kernel looks at (BINPRM_BUF_SIZE, include/uapi/linux/binfmts.h)."""
_PT_INTERP = 3
_MARKS = (
    (b"\xef\xbb\xbf", "begins with a UTF-8 byte order mark; save it without one"),
    (b"\xff\xfe", "is UTF-16 text; save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16 text; save it as UTF-8"),
)
_OTHERS = (
    (b"\xcf\xfa\xed\xfe", "macOS"),
    (b"\xca\xfe\xba\xbe\0\0\0\2", "macOS"),
    (b"MZ", "Windows"),
    (b"\0asm", "WebAssembly"),
)
"""How programs of other systems begin (mach-o/loader.h, mach-o/fat.h for two machines, the PE format, the WebAssembly
core specification)."""
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class Finding(NamedTuple):
    """The file that an execve could not use.

    Parameters:
        depth: 0 for the program itself; any other is the interpreter or loader of the file before it.
        is_loader: which of the two.
        error: the errno for which it cannot be used: ENOENT, EISDIR, ENXIO (neither file nor directory), EACCES; 0: it
            is there and may be executed.
        head: its first bytes, where it may be read.
    """

    depth: int
    is_loader: bool
    error: int
    name: str
    head: bytes


def why_refused(found: Finding, *, is_format: bool) -> str | None:
    """What is wrong with the program, as the rest of a sentence about it; None where only the errno tells.

    Parameters:
        is_format: the errno is about what is in the file (ENOEXEC, ELIBBAD), and not about the way to it.
    """
    if found.depth:
        return _why_not_the_next(found, is_format)
    if found.error in _ABSENT or not found.name:
        return None
    if found.error:
        return _in_the_way(found.error)
    return _no_program(found.head) if is_format else None


def _why_not_the_next(found: Finding, is_format: bool) -> str | None:
    if found.error in _ABSENT and found.name.endswith("\r"):
        return (
            f"line 1 ends with a carriage return, so its interpreter would be {found.name!r}; save it with LF line ends"
        )
    whose = "its" if found.depth == 1 else "its interpreter's"
    what = f"{whose} {'loader' if found.is_loader else 'interpreter'} {found.name!r}"
    if found.error in _ABSENT:
        more = "; it was built for another C library or system" if found.is_loader else ""
        return f"{what} does not exist here{more}"
    wrong = _in_the_way(found.error) if found.error else _no_program(found.head) if is_format else None
    return f"{what} {wrong}" if wrong else None


def _in_the_way(error: int) -> str | None:
    if error == errno.EISDIR:
        return "is a directory"
    if error == errno.ENXIO:
        return "is no regular file"
    if error == errno.EACCES:
        return "may not be executed by this user: its mode, a directory on the way, or a mount with noexec"
    return None


def _no_program(head: bytes) -> str | None:
    """Of a file whose first bytes these are, and which the kernel did not take."""
    for mark, words in _MARKS:
        if head.startswith(mark):
            return words
    for magic, system in _OTHERS:
        if head.startswith(magic):
            return f"is a program for {system}, and this machine does not run it"
    if head.startswith(_ELF) and len(head) >= _ELF_BYTES and _number(head, 16) == _ET_REL:
        return "is an object file; link it"
    if head.startswith(_ELF):
        return f"is a program for {_machine(head)}, and this machine does not run it"
    if not head:
        return None
    return None if head.startswith(b"#!") else "is no program and has no #! line that names its interpreter"


def _number(head: bytes, at: int) -> int:
    return int.from_bytes(head[at : at + 2], "big" if head[5] == 2 else "little")


def _machine(head: bytes) -> str:
    if len(head) < _ELF_BYTES:
        return "no machine (it is cut short)"
    number = _number(head, 18)
    return _MACHINES.get(number, f"machine {number} of elf(5)")


def interpreter_of(head: bytes) -> str | None:
    """What a script's first line names, as the kernel reads it: up to a blank, and a carriage return is none."""
    if not head.startswith(b"#!"):
        return None
    line = head[2:_SCRIPT_BYTES].partition(b"\n")[0].lstrip(b" \t")
    name = line.replace(b"\t", b" ").partition(b" ")[0].partition(b"\0")[0]
    return name.decode("utf-8", "backslashreplace") or None


def loader_of(head: bytes) -> str | None:
    """The loader of a program (PT_INTERP) of this kind of machine, where it lies in what is there of it."""
    if not head.startswith(_ELF) or len(head) < 64 or head[5] != 1:
        return None
    wide = head[4] == 2
    (offset,) = struct.unpack_from("<Q" if wide else "<I", head, 32 if wide else 28)
    each, count = struct.unpack_from("<2H", head, 54 if wide else 42)
    for at in range(offset, offset + min(count, limits.PROGRAM_HEADERS) * each, each or 1):
        entry = head[at : at + (56 if wide else 32)]
        if len(entry) < 32 or int.from_bytes(entry[:4], "little") != _PT_INTERP:
            continue
        (start,) = struct.unpack_from("<Q" if wide else "<I", entry, 8 if wide else 4)
        name = head[start : start + limits.PATH_BYTES].partition(b"\0")[0]
        return name.decode("utf-8", "backslashreplace") or None
    return None
