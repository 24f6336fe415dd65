"""Mounts and namespaces of this process: the system calls that Python has no words for.

Signatures and numbers as of mount(2), umount2(2), unshare(2), prctl(2), open_tree(2), mount_setattr(2) and
move_mount(2); the last three have the same number on every architecture that came after alpha (include/uapi/
asm-generic/unistd.h). Paths are relative to the working directory where they are not absolute.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from contextlib import suppress

_LIBC = ctypes.CDLL(None, use_errno=True)

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_REC, _MS_SLAVE = 0x4000, 0x80000
_MNT_DETACH = 2
_PR_SET_CHILD_SUBREAPER = 36

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = 1, 4
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_MOUNT_ATTR_IDMAP = 0x00100000


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def own_mounts() -> None:
    """Have a mount namespace of our own, with this process: what is mounted here from now on ends with the last process
    in it. What the host mounts and unmounts later is seen here too.

    Raises:
        OSError: this process has not the rights.
    """
    _checked(_LIBC.unshare(_CLONE_NEWNS), "unshare")
    _checked(_LIBC.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None), "/")


def adopt_orphans() -> None:
    """Have descendants whose parent ends become our children (PR_SET_CHILD_SUBREAPER)."""
    _checked(_LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


def mount_overlay(lower: list[str], upper: str, work: str, target: str) -> None:
    """Mount an overlay.

    Parameters:
        lower: directories, the uppermost first.

    Raises:
        OSError: also where all paths together are longer than a page.
    """
    options = f"lowerdir={':'.join(lower)},upperdir={upper},workdir={work}"
    _checked(_LIBC.mount(b"overlay", os.fsencode(target), b"overlay", 0, os.fsencode(options)), target)


def mount_memory(target: str) -> None:
    """Mount an empty file system in memory.

    Raises:
        OSError: `target` is no directory.
    """
    _checked(_LIBC.mount(b"tmpfs", os.fsencode(target), b"tmpfs", 0, b"mode=700"), target)


def unmount(target: str) -> None:
    """Take a mount away here; whoever else has it keeps it.

    Raises:
        OSError: it is none.
    """
    _checked(_LIBC.umount2(os.fsencode(target), _MNT_DETACH), target)


def mount_mapped(source: str, target: str, user_namespace: int) -> None:
    """Mount a directory a second time, with other ids: what belongs to an id of the user namespace on disk belongs
    there to the id that it is mapped to.

    Parameters:
        user_namespace: a descriptor, as from `make_user_namespace`.

    Raises:
        OSError: its file system cannot be mapped, or `target` is no directory.
    """
    tree = open_bare(source)
    try:
        attributes = _MountAttributes(_MOUNT_ATTR_IDMAP, 0, 0, user_namespace)
        size = ctypes.c_size_t(ctypes.sizeof(attributes))
        _checked(_LIBC.syscall(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(attributes), size), source)
        moved = _LIBC.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
        _checked(moved, target)
    finally:
        os.close(tree)


def open_bare(path: str) -> int:
    """A descriptor of a directory by a mount of its own, without what is mounted in it.

    Raises:
        OSError: it is none, or cannot be had.
    """
    tree: int = _LIBC.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(path), _OPEN_TREE_CLONE | os.O_CLOEXEC)
    _checked(tree, path)
    return tree


def make_user_namespace(first: int, count: int) -> int:
    """A descriptor of a new user namespace whose ids from 0 on are these of the host, users and groups alike.

    Raises:
        OSError: there are too many (user.max_user_namespaces), or no rights.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = os.fork()
        if child == 0:
            _wait_in_a_user_namespace(ours, theirs)
        try:
            theirs.close()
            if ours.recv(1) != b"!":
                raise OSError(ctypes.get_errno() or 1, "no user namespace can be made")
            for name in ("uid_map", "gid_map"):
                with open(f"/proc/{child}/{name}", "w", encoding="ascii") as file:
                    file.write(f"0 {first} {count}")
            return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _wait_in_a_user_namespace(ours: socket.socket, theirs: socket.socket) -> None:
    """In a child process, which never returns. It has all descriptors of its parent, locks among them, and ends with
    it, also where that is killed: a death signal would not do, as the kernel forgets it with the new namespace."""
    with suppress(BaseException):
        ours.close()
        if _LIBC.unshare(_CLONE_NEWUSER) == 0:
            theirs.send(b"!")
            theirs.recv(1)
    os._exit(1)


def _checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
