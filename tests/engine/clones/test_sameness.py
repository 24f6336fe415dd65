"""A clone is confined as the engine's own container is: the same in all that the kernel and its processes see of it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from fastclaw.engine import container as container_module
from fastclaw.engine.clones import learning, remains
from tests.engine.test_container import run

if TYPE_CHECKING:
    from fastclaw.engine.container import SpawnerContainer
    from tests.engine.clones.clone_fleet import CloneFleet

PASSING = {"voluntary_ctxt_switches", "nonvoluntary_ctxt_switches", "Pid", "Tgid", "PPid", "State", "SigQ"}
"""Lines of /proc/PID/status that say nothing of rights; and those of memory, which begin with Vm and Rss."""

FILES = ("limits", "cgroup", "uid_map", "gid_map", "oom_score_adj", "cmdline", "timerslack_ns", "setgroups")
DIFFERENT = ("lowerdir", "upperdir", "workdir", "uid=", "gid=")
"""Of mounts: where the files are, and whose a file system in memory is, which is seen from inside as well."""
OWN = {"mnt", "net", "pid", "ipc", "uts", "cgroup"}
"""Namespaces."""

INSIDE = """
exec 2>&1
id; hostname; ulimit -a; umask; env | sort
grep -E 'Cap|Seccomp|NoNewPrivs|Groups|Sig[^Q]' /proc/self/status
for file in hosts hostname resolv.conf passwd; do stat -c '%n %A %u %g %s' /etc/$file; cat /etc/$file; done
cat /run/.containerenv
for way in / /etc /run /tmp /work /dev /dev/shm /dev/pts /proc/sys/kernel /sys /sys/fs/cgroup; do
  stat -c '%n %A %u %g %t %T' $way; ls $way | while read name; do stat -c '%n %A %u %g %t %T %N' $way/$name; done
done
stat -f -c '%T %s %b' /dev/shm /dev
cat /proc/self/cgroup /proc/self/uid_map /proc/self/gid_map /proc/1/oom_score_adj /proc/self/personality
for file in /proc/kcore /proc/keys /proc/timer_list /proc/sysrq-trigger /sys/firmware /proc/acpi; do
  ls $file; cat $file; echo x >$file
done
mknod /tmp/node c 1 3; chown 1 /tmp/node; mkdir /sys/fs/cgroup/new; mount -t tmpfs none /mnt
echo 1 >/proc/sys/kernel/pid_max
"""


class Seen(NamedTuple):
    """What is to be the same, made comparable: ids and paths of one container's own are replaced."""

    text: str

    @classmethod
    def of(cls, text: str, container: SpawnerContainer, root: int) -> Seen:
        text = re.sub(f"libpod-{container.id}|fastclaw-[^/-]*-[^/-]*-{container.id}", "GROUP", text)
        text = text.replace(container.id, "ID")
        text = text.replace(str(container._spec["name"]), "NAME")
        return cls(re.sub(r"\b1[01]\d{8}\b", lambda found: f"ROOT+{int(found[0]) - root}", text) if root else text)


def _read(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


def status(pid: int) -> str:
    lines = [line for line in _read(pid, "status").splitlines() if not line.startswith(("Vm", "Rss", "NS", "Hugetlb"))]
    return "\n".join(line for line in lines if line.partition(":")[0] not in PASSING)


def mounts(pid: int) -> str:
    """Where, how and of what type: without numbers, sources on the host and layers."""
    found = []
    for line in _read(pid, "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        _, _, _, root, point, options, *optional = before.split()
        kind, source, more = after.split()
        shown = root if kind not in ("ext4", "xfs", "btrfs", "tmpfs") else ""
        kept = ",".join(part for part in more.split(",") if not part.startswith(DIFFERENT))
        found.append(" ".join((point, options, *optional, kind, source, kept, shown)))
    return "\n".join(sorted(found))


def namespaces(pid: int) -> dict[str, str]:
    folder = f"/proc/{pid}/ns"
    return {name: os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}


def streams(pid: int) -> list[str]:
    return [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)]


def _root(container: SpawnerContainer) -> int:
    mappings = container._spec.get("idmappings")
    return mappings["UIDMap"][0]["host_id"] if mappings else 0


async def _init(clones: CloneFleet, container: SpawnerContainer) -> int:
    state = await clones.cloning.inspect_container(container.id)
    assert state is not None
    return state.pid


@pytest.mark.parametrize("is_mapped", [False, True])
async def test_the_kernel_sees_the_same_of_both(clones: CloneFleet, is_mapped: bool) -> None:
    options: dict[str, Any] = {
        "ids": is_mapped,
        "memory_bytes": 64 << 20,
        "capabilities": ("CAP_CHOWN",),
        "has_resolv": True,
    }
    async with clones.up(**options) as first, clones.up(**options) as clone:
        pids = [await _init(clones, one) for one in (first, clone)]
        assert [clones.cloning.made_by(one.id)[0] for one in (first, clone)] == ["engine", "clone"]
        for look in (status, mounts):
            seen = [Seen.of(look(pid), one, _root(one)) for pid, one in zip(pids, (first, clone), strict=True)]
            assert seen[0].text == seen[1].text
        for name in (
            "limits",
            "cgroup",
            "uid_map",
            "gid_map",
            "oom_score_adj",
            "cmdline",
            "timerslack_ns",
            "setgroups",
        ):
            seen = [Seen.of(_read(pid, name), one, _root(one)) for pid, one in zip(pids, (first, clone), strict=True)]
            assert seen[0].text == seen[1].text, name
        podmans, ours, hosts = (namespaces(pid) for pid in (*pids, os.getpid()))
        assert podmans.keys() == ours.keys() == hosts.keys()
        for name, own in ours.items():
            is_own = own != hosts[name]
            assert is_own == (podmans[name] != hosts[name]), name
            assert not is_own or own != podmans[name], name
        assert {name for name, own in ours.items() if own != hosts[name]} >= {
            "mnt",
            "net",
            "pid",
            "ipc",
            "uts",
            "cgroup",
        }
        assert os.sched_getaffinity(pids[0]) == os.sched_getaffinity(pids[1])
        assert os.getpriority(os.PRIO_PROCESS, pids[0]) == os.getpriority(os.PRIO_PROCESS, pids[1])
        record = clones.cloning._path / remains.STATE / clone.id
        filters = [folder / "seccomp.bpf" for folder in (learning._RECORDS / first.id, record)]
        assert filters[0].read_bytes() == filters[1].read_bytes()
        assert streams(pids[0]) == streams(pids[1]) == ["/dev/null"] * 3


@pytest.mark.parametrize("user", ["0", "1000:1000"])
@pytest.mark.parametrize("is_mapped", [False, True])
@pytest.mark.parametrize("has_files", [False, True])
async def test_its_processes_see_the_same_in_both(
    clones: CloneFleet, is_mapped: bool, has_files: bool, user: str
) -> None:
    options: dict[str, Any] = {
        "ids": is_mapped,
        "capabilities": ("CAP_CHOWN", "CAP_MKNOD"),
        "has_hosts": has_files,
        "has_resolv": has_files,
        "shm_bytes": 1 << 20,
    }
    async with clones.up(**options) as first, clones.up(**options) as clone:
        said = [Seen.of((await run(one, "sh", "-c", INSIDE, user=user))[1], one, _root(one)) for one in (first, clone)]
        assert said[0].text.splitlines() == said[1].text.splitlines()


async def test_nothing_of_the_hosts_is_given_to_root_inside(
    clones: CloneFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """crun gives its own streams to it (1.8.1, maybe_chown_std_streams), which are a clone's own pipes."""
    async with clones.up(ids=True):
        monkeypatch.setattr(container_module, "_take_back_null", lambda spec: None)
        async with clones.up(ids=True) as clone:
            assert clones.cloning.made_by(clone.id)[0] == "clone"
            found = os.stat("/dev/null")
            assert (found.st_uid, found.st_gid) == (0, 0)
