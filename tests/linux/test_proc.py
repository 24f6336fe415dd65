"""Reading /proc: the two formats by example, and real processes."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw.linux import proc
from fastclaw.linux.proc import Owner, boot_id, identity, is_dead, parse_label, start_time, this_process
from tests.odd_programs import BY_ANOTHER_NAME

STAT = b"42 (%s) %s 7 8 9 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 %d 0 12345 %d 100 18446744073709551615\n"


@pytest.mark.parametrize("name", [b"sh", b"a b", b") R 1 1 1", b"(((", b"x) Z"])
def test_a_name_cannot_forge_a_stat(name: bytes) -> None:
    assert proc.parse_stat(STAT % (name, b"S", 1, 4096)) == proc.Stat(7, 8, 9, 12345, False, False)


def test_a_zombie_is_gone_unless_threads_of_it_run_on() -> None:
    assert proc.parse_stat(STAT % (b"x", b"Z", 1, 0)).gone
    assert not proc.parse_stat(STAT % (b"x", b"Z", 2, 4096)).gone


@given(st.lists(st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=8)), st.text("ab=", max_size=8))
def test_a_variable_is_found_wherever_it_stands(others: list[str], value: str) -> None:
    entries = [entry for entry in others if not entry.startswith("KEY=")]
    for at in range(len(entries) + 1):
        block = "".join(f"{entry}\0" for entry in [*entries[:at], f"KEY={value}", *entries[at:]]).encode()
        assert proc.find_value(block, b"KEY") == value


def test_a_variable_is_not_found_inside_another() -> None:
    assert proc.find_value(b"MY_KEY=1\0X=KEY=2\0", b"KEY") is None
    assert proc.find_value(b"", b"KEY") is None


def test_scan_finds_a_marked_process_behind_a_large_environment() -> None:
    env = {f"FILL{n}": "x" * 100_000 for n in range(3)} | {"FASTCLAW_TEST": "here"}
    pipe, path = subprocess.PIPE, os.environ["PATH"]
    with subprocess.Popen(["cat"], stdin=pipe, stdout=pipe, bufsize=0, env=env | {"PATH": path}) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"x")
        assert child.stdout.read(1) == b"x"  # in the middle of its execve the kernel does not have its environment yet
        row = next(row for row in proc.scan("FASTCLAW_TEST") if row.pid == child.pid)
        assert (row.ppid, row.marker) == (os.getpid(), "here")
        assert proc.is_running(child.pid, row.starttime)
        assert not proc.is_running(child.pid, row.starttime + 1)
        assert proc.ticks_now() >= row.starttime
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not proc.is_running(child.pid, row.starttime)
        assert dict(proc.children(os.getpid()))[child.pid].gone
        assert child.pid not in [one.pid for one in proc.scan("FASTCLAW_TEST")]
    assert proc.read_stat(child.pid) is None


def test_scans_survive_processes_that_vanish_meanwhile() -> None:
    over = threading.Event()

    def churn() -> None:
        while not over.is_set():
            os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)

    with_churn = threading.Thread(target=churn)
    with_churn.start()
    try:
        assert all(os.getpid() in [row.pid for row in proc.scan("NONE")] for _ in range(20))
    finally:
        over.set()
        with_churn.join()


def test_whoever_is_born_during_a_scan_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    born: list[subprocess.Popen[bytes]] = []

    def listed_before(pids: list[int]) -> list[int]:
        born.append(subprocess.Popen(["cat"], stdin=subprocess.PIPE))
        return pids

    listed = proc.pids()
    monkeypatch.setattr(proc, "pids", lambda: listed_before(listed))
    rows, doubt = proc.scan_with_doubt("NONE")
    born[0].communicate()
    assert born[0].pid in [row.pid for row in rows]
    assert not doubt


def test_births_that_do_not_cease_are_a_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = itertools.count(10_000_000)
    monkeypatch.setattr(proc, "_last_pid", lambda: next(numbers))
    assert proc.scan_with_doubt("NONE")[1]


NAME = "open('/proc/self/comm', 'w').write('podman pause'); print(flush=True); input()"


@pytest.mark.parametrize(
    ("words", "is_pause"),
    [
        (["podman", "-c", NAME], True),
        (["/usr/libexec/podman/catatonit", "-P", "-c", "print(flush=True); input()"], True),
        (["/usr/bin/catatonit", "-S", "-c", "print(flush=True); input()"], False),
        (["podman", "-c", "print(flush=True); input()"], False),
    ],
)
def test_a_rootless_engines_pause_process_is_known_by_its_name(words: list[str], is_pause: bool) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(words, executable=sys.executable, env=BY_ANOTHER_NAME, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        assert proc.is_podman_pause(process.pid) is is_pause
        process.communicate(b"\n")
    assert not proc.is_podman_pause(process.pid)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [(b"KEY=a b", True), (b"KEY=a", False), (b"EY=a b", False), (b"KEY", False), (b"X=KEY=c", True), (b"KEY=c", False)],
)
def test_a_variable_counts_as_a_whole(entry: bytes, expected: bool) -> None:
    env = {"A": "x" * 100_000, "X": "KEY=c", "KEY": "a b"}
    with subprocess.Popen(["/bin/cat"], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()  # it runs: during execve the environment is empty for a moment
        found = proc.has_variable(process.pid, entry)
        process.kill()
    assert found is expected


def test_what_has_ended_has_no_variables() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not proc.has_variable(process.pid, f"PATH={os.environ['PATH']}".encode())
    assert not proc.has_variable(process.pid, b"A=1")


SECRETIVE = """
import os, sys
sys.path.insert(0, sys.argv[1])
from fastclaw.linux.proc import has_variable
if os.geteuid() == 0:
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
sys.exit(0 if has_variable(1, b"NO=SUCH") else 1)
"""


def test_what_may_not_be_looked_at_counts_as_found() -> None:
    """An ordinary user looks at PID 1. The interpreter drops its rights after it has read what it needs."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(proc.__file__)))
    assert subprocess.run([sys.executable, "-c", SECRETIVE, root], check=False, timeout=20).returncode == 0


MOUNTS = b"""\
1 0 8:1 / / rw - ext4 /dev/vda rw
2 1 0:1 / /run rw shared:5 master:1 - tmpfs tmpfs rw
3 1 0:2 / /run/with\\040space rw - overlay overlay rw
4 1 0:3 / /home rw - nfs4 host:/home rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/running", "ext4"),
        ("/run", "tmpfs"),
        ("/run/x/y", "tmpfs"),
        ("/run/with space/x", "overlay"),
        ("/home/someone", "nfs4"),
    ],
)
def test_file_system_of_the_longest_mount_point(path: str, kind: str) -> None:
    assert proc.file_system(path, proc.parse_mounts(MOUNTS)) == kind


# --- who a process is, beyond its pid ---


def test_this_process_has_a_start_time() -> None:
    assert start_time(os.getpid()) == this_process().start_time > 0


def test_a_reaped_process_has_none() -> None:
    done = subprocess.Popen(["true"])
    done.wait(10)
    assert start_time(done.pid) is None


def test_a_zombie_counts_as_gone() -> None:
    pid = os.posix_spawnp("true", ["true"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        assert start_time(pid) is None
    finally:
        os.waitpid(pid, 0)


@pytest.mark.parametrize("name", ["x", "a b", ") R (", "((", "R 1 2 3"])
def test_a_program_may_have_any_name(name: str) -> None:
    fields = " ".join(str(number) for number in range(4, 53))
    assert identity(f"77 ({name}) S {fields}\n") == (77, 22)


def test_boot_id_is_the_kernels() -> None:
    assert len(boot_id()) == 36


def test_what_we_own_says_so() -> None:
    assert parse_label(this_process().label) == this_process()
    assert not is_dead(this_process())
    assert not is_dead(None)
    assert is_dead(this_process()._replace(start_time=1))


@given(pid=st.integers(1, 2**22), start=st.integers(0, 2**60), boot=st.uuids())
def test_owner_label_round_trip(pid: int, start: int, boot: object) -> None:
    owner = Owner(pid, start, start + 1, str(boot))
    assert parse_label(owner.label) == owner


@given(st.text(max_size=40))
def test_any_text_is_an_owner_or_not(text: str) -> None:
    owner = parse_label(text)
    assert owner is None or owner.label.partition(":")[2]


@pytest.mark.parametrize(
    ("label", "dead"),
    [
        ("12:345:boot-a:7", False),
        ("12:346:boot-a:7", True),
        ("13:345:boot-a:7", True),
        ("12:345:boot-b:7", True),
        # In another PID namespace 12 is somebody else: nobody here can know whether that one lives.
        ("12:346:boot-a:8", False),
        ("13:345:boot-a:8", False),
        ("12:345:boot-b:8", True),
        ("", False),
        ("12:345", False),
        ("12:346:boot-a", False),
        ("12:346:boot-a:", False),
        ("12:346:boot-a:7:7", False),
        ("-12:345:boot-a:7", False),
        ("x:345:boot-a:7", False),
    ],
)
def test_dead_owners(label: str, dead: bool) -> None:
    here, started = Owner(1, 1, 7, "boot-a"), {12: 345}
    owner = parse_label(label)
    assert (owner is not None and owner.is_gone(here, started.get(owner.pid))) is dead


@pytest.mark.parametrize(
    ("start", "namespace", "dead"), [(345, 7, False), (346, 7, True), (None, 7, True), (None, 8, False)]
)
def test_an_owner_of_this_boot_needs_no_boot_id(start: int | None, namespace: int, dead: bool) -> None:
    assert Owner(12, 345, namespace).is_gone(Owner(1, 1, 7, "boot-a"), start) is dead


def test_who_descends_from_whom() -> None:
    child = subprocess.Popen(["sleep", "60"])
    assert proc.descends_from(child.pid, os.getpid())
    assert proc.descends_from(os.getpid(), os.getpid())
    assert not proc.descends_from(os.getpid(), child.pid)
    child.kill()
    child.wait()
    assert proc.descends_from(child.pid, os.getpid())
