"""What there is of a clone on this host, and how it is removed: processes, control groups, the runtime's record, files.

    STORAGE/fastclaw-clones/<random>/      of one fastclaw, which holds it; in use while that or its cloner lives
        layers/<number>/                   a layer of an image, by hard links: it stays where the image is removed
        clones/<id>/{upper,work,merged}    the overlay; config.json, the init's pid, and the clone's own files
        state/<id>/                        crun's record
        volumes/<name>/files/              a workspace
        trash/<number>/                    what nobody has any more, and is being removed

`clones/<id>` is there before anything else of a clone, and goes last: what it names is looked for by whoever cleans
up, the cloner that made it, another one, or the next fastclaw. Standard library only.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from fastclaw import engine_limits
from fastclaw.linux.file_trees import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

LAYERS, CLONES, STATE, VOLUMES, TRASH = "layers", "clones", "state", "volumes", "trash"

VOLUME = "files"
"""What is mounted of a volume: in a directory that only its containers' root gets through."""

CGROUPS = "/sys/fs/cgroup"


def remove_clone(directory: str, id: str, *, adopted: bool = False) -> None:
    """End a clone and remove all that is left of it. One that is not there is fine.

    Parameters:
        directory: of its fastclaw.
        adopted: another process was starting it, so that a crun may be in the middle of it.

    Raises:
        OSError: something of it cannot be removed; or it does not end.
    """
    if end_clone(directory, id, adopted=adopted):
        remove_tree(f"{directory}/{CLONES}/{id}")


def end_clone(directory: str, id: str, *, adopted: bool = False) -> bool:
    """End a clone and remove all that is left of it but its files. Whether it has some.

    Parameters and errors are those of `remove_clone`.
    """
    own = f"{directory}/{CLONES}/{id}"
    if not os.path.lexists(own):
        return False
    if adopted:
        _end_strays([id])
    group = _cgroup(f"{own}/config.json")
    if group is not None:
        remove_cgroups(group, id)
    remove_tree(f"{directory}/{STATE}/{id}")
    return True


def remove_directory(directory: str, *, adopted: bool) -> None:
    """Remove all clones of a fastclaw that has ended, and its directory.

    Parameters:
        adopted: as for `remove_clone`.

    Raises:
        OSError: as `remove_clone`.
    """
    with suppress(FileNotFoundError):
        ids = os.listdir(f"{directory}/{CLONES}")
        if adopted and ids:
            _end_strays(ids)
        for id in ids:
            remove_clone(directory, id)
    remove_tree(directory)


def remove_abandoned(parent: Path) -> list[str]:
    """Remove the directories whose fastclaw has ended, with its cloner.

    Returns:
        What could not be removed, a line for each.
    """
    troubles = []
    with suppress(FileNotFoundError):
        for name in os.listdir(parent):
            try:
                _remove_unlocked(f"{parent}/{name}")
            except OSError as error:
                troubles.append(f"{parent}/{name}: {error.strerror}: {error.filename}")
    return troubles


def _remove_unlocked(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove_directory(path, adopted=True)
    except BlockingIOError:
        pass
    finally:
        os.close(fd)


def _cgroup(config: str) -> str | None:
    """What the config.json of a clone names; None where it was not written yet, or is half removed."""
    with suppress(OSError, ValueError, KeyError), open(config, "rb") as file:
        path: str = json.load(file)["linux"]["cgroupsPath"]
        return path
    return None


def remove_cgroups(group: str, id: str) -> None:
    """End what is in the control groups of a clone, and remove them.

    Parameters:
        group: their path below each hierarchy.
        id: in their name.

    Raises:
        OSError: they are still in use after `engine_limits.CLONE_END_MS`.
    """
    if not os.path.basename(group).endswith(id):
        return
    deadline = time.monotonic() + engine_limits.CLONE_END_MS / 1000
    for folder in _hierarchies(group):
        while True:
            try:
                _remove_groups(folder)
                break
            except FileNotFoundError:
                break
            except OSError as error:
                if error.errno == errno.ENOTEMPTY:  # a plain directory, where the cloner hides version 2 from crun
                    remove_tree(folder)
                    break
                if time.monotonic() > deadline:
                    raise
            end_all(_members(folder, id))
            time.sleep(engine_limits.CLONE_LOOK_MS / 1000)  # version 1 has no event for an empty group


def _hierarchies(group: str) -> list[str]:
    """Where the group is: below each hierarchy of version 1, and in that of version 2."""
    with os.scandir(CGROUPS) as entries:
        mounts = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    found = [f"{mount}{group}" for mount in (CGROUPS, *mounts)]
    return [folder for folder in found if os.path.isdir(folder)]


def _remove_groups(folder: str) -> None:
    """A group with those below it: their files cannot be removed and need not be."""
    try:
        os.rmdir(folder)
    except OSError:
        with os.scandir(folder) as entries:
            inner = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        if not inner:
            raise
        for one in inner:
            _remove_groups(one)
        os.rmdir(folder)


def _members(folder: str, id: str) -> list[int]:
    found = []
    for inner, _, _ in os.walk(folder):
        with suppress(OSError), open(f"{inner}/cgroup.procs", encoding="ascii") as file:
            found += [int(line) for line in file if line != "0\n"]
    return [pid for pid in found if _is_in(pid, id)]


def end_all(pids: Iterable[int]) -> None:
    """Kill processes of clones, and wait until they have ended, as long as one may take.

    Parameters:
        pids: asked for what they are as they are gone through, each just before it is held.
    """
    poll = select.poll()
    held = []
    try:
        for pid in pids:
            with suppress(OSError):
                held.append(os.pidfd_open(pid))
                signal.pidfd_send_signal(held[-1], signal.SIGKILL)
                poll.register(held[-1], select.POLLIN)
        deadline = time.monotonic() + engine_limits.CLONE_END_MS / 1000
        waiting = set(held)
        while waiting and (left := deadline - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                poll.unregister(fd)
                waiting.discard(fd)
    finally:
        for fd in held:
            os.close(fd)


def _end_strays(ids: list[str]) -> None:
    """End what is in these clones, and each crun that makes one of them."""
    words = {id.encode() for id in ids}
    pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    end_all(pid for pid in pids if words & set(_read(pid, "cmdline").split(b"\0")))
    end_all(pid for pid in pids if any(word in _read(pid, "cgroup") for word in words))


def _is_in(pid: int, id: str) -> bool:
    return id.encode() in _read(pid, "cgroup")


def _read(pid: int, name: str) -> bytes:
    with suppress(OSError), open(f"/proc/{pid}/{name}", "rb") as file:
        return file.read()
    return b""
