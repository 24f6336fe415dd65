"""Who the real spawner and its processes are, also where few users are mapped."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.spawner import frames
from tests.pids import children_of, descendants_of, is_there
from tests.spawner.fake_spawner import BareHost, pumps_of
from tests.spawner.rig import needs_root
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


ROOT = frames.Identity(0, 0, [])


@contextlib.contextmanager
def a_mapped_host(ids: int, *, uid: int = limits.REAPER_UID) -> Iterator[BareHost]:
    """In a user namespace of its own, where only so many ids are mapped, and confined."""
    host = BareHost("unshare", "--user", "sh", "-c", 'read go && exec "$@"', "sh")
    try:
        wait_until(lambda: os.readlink(f"/proc/{host.process.pid}/ns/user") != os.readlink("/proc/self/ns/user"))
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{host.process.pid}/{name}", "w") as mapped:
                mapped.write(f"0 0 {ids}\n")
        assert host.process.stdin is not None
        host.process.stdin.write(b"go\n")
        host.process.stdin.flush()
        assert host.greet().can_set_user
        host.send_welcome(confine=True, uid=uid)
        yield host
    finally:
        host.close()


def uids_of(pid: int) -> set[str]:
    with open(f"/proc/{pid}/status") as status:
        return set(next(line for line in status if line.startswith("Uid:")).split()[1:])


@needs_root
def test_without_a_user_of_its_own_it_makes_no_reapers() -> None:
    """Else they would be root inside, and any command of root's could end them."""
    with a_mapped_host(1) as host:
        assert host.ask(frames.control(frames.GROW, 1, 2))[:4] == (frames.ANSWER, 1, errno.EUSERS, 0)
        assert children_of(host.process.pid) == []


@needs_root
@pytest.mark.parametrize("ids", [2, 100, 1_000, 65_535, 65_536])
def test_where_its_user_is_not_mapped_it_takes_the_highest_that_is(ids: int) -> None:
    with a_mapped_host(ids) as host:
        host.grow(3)
        own = min(ids - 1, limits.REAPER_UID)
        everybody = [host.process.pid, *children_of(host.process.pid)]
        assert {uid for pid in everybody for uid in uids_of(pid)} == {str(own)}
        pumps = pumps_of(host.process.pid)
        theirs = own if own <= 256 else own - 1
        wait_until(lambda: {uid for pump in pumps for uid in uids_of(pump)} == {str(theirs)})


@needs_root
@pytest.mark.parametrize("ids", [2, 100, 1_000])
def test_a_command_of_root_cannot_touch_it_and_nobody_may_be_who_it_is(ids: int) -> None:
    with a_mapped_host(ids) as host:
        host.grow(3)
        targets = [host.process.pid, *descendants_of(host.process.pid)]
        script = "for pid; do kill -9 $pid 2>/dev/null && echo $pid; done; echo end"
        host.start(1, "sh", "-c", script, "sh", *map(str, targets), identity=ROOT)
        client = host.attach(1)
        assert client.recv(1_000) == b"end\n"
        client.close()
        own = {int(uid) for pid in targets for uid in uids_of(pid)}
        for number, uid in enumerate(sorted(own)):
            host.drain()
            host.send_start(10 + number, "true", identity=frames.Identity(uid, 0, []))
            while (event := host.event()).id != 10 + number:
                pass
            assert event[:4] == (frames.REFUSED, 10 + number, errno.EPERM, frames.STEP_USER)


@needs_root
def test_a_user_that_is_not_mapped_is_refused() -> None:
    with a_mapped_host(1_000) as host:
        host.grow(2)
        host.send_start(1, "true", identity=frames.Identity(5_000, 0, []))
        assert host.event()[:4] == (frames.REFUSED, 1, errno.EINVAL, frames.STEP_USER)
        host.start(2, "true")


@needs_root
def test_nobody_gets_signals_to_it_by_a_descriptor_s_owner() -> None:
    """fcntl(2), F_SETOWN: the kernel lets the host's root send SIGIO to whom he likes. It is ignored, not refused."""
    program = """
import fcntl, os, sys
r, w = os.pipe()
pid = int(sys.argv[1])
calls = [(8, pid), (15, (1).to_bytes(4, "little") + pid.to_bytes(4, "little")), (10, 9)]
print([fcntl.fcntl(r, op, argument) for op, argument in (calls[0], calls[2])], fcntl.fcntl(r, *calls[1])[:0],
      fcntl.ioctl(r, 0x8901, pid.to_bytes(4, "little"))[:0], fcntl.ioctl(r, 0x8902, pid.to_bytes(4, "little"))[:0],
      fcntl.fcntl(r, 9), fcntl.fcntl(r, 11))
fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)
os.write(w, b"x")
print("sent")
"""
    with a_mapped_host(65_536) as host:
        host.grow(2)
        reaper = children_of(host.process.pid)[0]
        host.start(1, sys.executable, "-S", "-c", program, str(reaper), identity=ROOT)
        client = host.attach(1)
        with client, client.makefile("rb") as said:
            assert said.read() == b"[0, 0] b'' b'' b'' 0 0\nsent\n"
        assert is_there(reaper)
