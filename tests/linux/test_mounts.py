"""Mounts of a process of its own: seen by nobody else, with other ids, gone with it. Each in a child process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has mounts of its own to make")

PRELUDE = "import os, sys; from fastclaw.linux.mounts import *; top = sys.argv[1]; os.chdir(top); own_mounts()\n"


def in_a_child(script: str, top: Path) -> list[str]:
    """The lines that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script, str(top)], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    """Two layers and the rest of an overlay."""
    for name in ("low", "high", "upper", "work", "merged", "mapped"):
        (tmp_path / name).mkdir()
    (tmp_path / "low" / "both").write_text("low")
    (tmp_path / "low" / "only").write_text("low")
    (tmp_path / "high" / "both").write_text("high")
    return tmp_path


def test_an_overlay_is_seen_inside_only_and_goes_with_its_process(layers: Path) -> None:
    script = """
mount_overlay(["high", "low"], "upper", "work", "merged")
print(open("merged/both").read(), open("merged/only").read())
open("merged/both", "w").write("new")
print(open("high/both").read(), open("upper/both").read())
print(sum(f"{top}/merged" in line for line in open("/proc/self/mountinfo")))
print(os.listdir(f"/proc/{os.getppid()}/root{top}/merged"))
unmount("merged")
print(os.listdir("merged"))
"""
    assert in_a_child(script, layers) == ["high low", "high new", "1", "[]", "[]"]
    assert str(layers) not in Path("/proc/self/mountinfo").read_text()


def test_a_mapped_mount_has_other_owners_and_so_has_an_overlay_of_it(layers: Path) -> None:
    os.chown(layers / "low" / "only", 7, 8)
    script = """
namespace = make_user_namespace(1_000_000, 65_536)
mount_mapped("low", "mapped", namespace)
mount_overlay(["high", "mapped"], "upper", "work", "merged")
unmount("mapped")
for path in ("low/only", "merged/only"):
    found = os.stat(path)
    print(found.st_uid, found.st_gid)
print(os.readlink(f"/proc/self/fd/{namespace}").partition(":")[0], os.get_inheritable(namespace))
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no child")
"""
    assert in_a_child(script, layers) == ["7 8", "1000007 1000008", "user False", "no child"]


def test_a_memory_mount_is_empty(layers: Path) -> None:
    script = "mount_memory('low'); print(os.listdir('low')); unmount('low'); print(sorted(os.listdir('low')))"
    assert in_a_child(script, layers) == ["[]", "['both', 'only']"]


def test_orphans_are_adopted(tmp_path: Path) -> None:
    script = """
adopt_orphans()
if (child := os.fork()) == 0:
    if os.fork() == 0:
        os._exit(7)
    os._exit(0)
os.waitpid(child, 0)
print(os.WEXITSTATUS(os.wait()[1]))
"""
    assert in_a_child(script, tmp_path) == ["7"]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("mount_overlay(['none'], 'upper', 'work', 'merged')", "No such file or directory"),
        ("mount_overlay(['low'] * 2000, 'upper', 'work', 'merged')", ""),
        ("mount_mapped('none', 'mapped', 0)", "No such file or directory"),
        ("mount_mapped('low', 'none', make_user_namespace(10, 10))", "No such file or directory"),
        ("mount_mapped('low', 'mapped', 0)", ""),
        ("mount_memory('none')", "No such file or directory"),
        ("unmount('low')", "Invalid argument"),
    ],
)
def test_what_the_kernel_refuses_is_an_error_and_leaves_no_descriptor(layers: Path, call: str, error: str) -> None:
    script = f"""
before = os.listdir("/proc/self/fd")
try:
    {call}
except OSError as error:
    print(error.strerror)
print(len(os.listdir("/proc/self/fd")) - len(before))
"""
    said, descriptors = in_a_child(script, layers)
    assert error in said
    assert int(descriptors) == ("make_user" in call)


def test_one_that_is_killed_while_it_makes_a_user_namespace_leaves_no_process() -> None:
    """Which would hold all its descriptors, and with them its locks."""
    script = """
import os, signal
from fastclaw.linux import mounts
mounts.open = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
mounts.make_user_namespace(1_000_000, 65_536)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as killed:
        assert killed.communicate(timeout=10)[0] == b""  # at the end of all who have it
        assert killed.returncode == -signal.SIGKILL
