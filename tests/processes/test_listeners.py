"""Paths, modes and peers of a process's sockets."""

import os
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastclaw import limits
from fastclaw.errors import IoError
from fastclaw.processes.listeners import SocketDirectory, is_trusted_peer, runtime_parent, turn_away


@pytest.fixture
def directory() -> Iterator[SocketDirectory]:
    made = SocketDirectory()
    yield made
    made.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def any_mode() -> Iterator[None]:
    """Nothing is masked."""
    before = os.umask(0)
    yield
    os.umask(before)


def test_modes_and_paths(any_mode: None, directory: SocketDirectory) -> None:
    sockets = directory.open("0123abcd-1")
    assert mode(directory.path) == 0o700
    paths = [Path(listener.path) for listener in sockets]
    assert [mode(path) for path in paths] == [0o600, 0o600]
    assert all(len(os.fsencode(path)) <= limits.SOCKET_PATH_BYTES for path in paths)
    sockets.close()
    assert not any(path.exists() for path in paths)
    directory.close()
    assert not directory.path.exists()


def test_a_parent_too_long_for_sockets_is_refused_and_left_clean(tmp_path: Path) -> None:
    parent = tmp_path / ("x" * 100)
    parent.mkdir()
    with pytest.raises(IoError, match="too long"):
        SocketDirectory(parent)
    assert list(parent.iterdir()) == []


def test_a_parent_that_is_not_there(short_dir: Path) -> None:
    with pytest.raises(IoError, match="cannot make"):
        SocketDirectory(short_dir / "gone")


def test_a_second_socket_that_fails_takes_the_first_with_it(directory: SocketDirectory) -> None:
    (directory.path / "p.err").mkdir()
    with pytest.raises(OSError, match="in use"):
        directory.open("p")
    assert [path.name for path in directory.path.iterdir()] == ["p.err"]


def test_where_directories_go(monkeypatch: pytest.MonkeyPatch, short_dir: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_dir))
    assert runtime_parent() == short_dir
    for unusable in ("relative", f"{short_dir}/gone"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", unusable)
        assert str(runtime_parent()) in ("/run", "/dev/shm", tempfile.gettempdir(), "/tmp")


def test_a_long_runtime_directory_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """anthropic-experimental/sandbox-runtime#213: it failed with words about socket paths, and no limit in them."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", None)
    directory = SocketDirectory()
    sockets = directory.open("0123abcd-1000000000")
    assert all(len(path) <= limits.SOCKET_PATH_BYTES for _, path in sockets)
    assert f"XDG_RUNTIME_DIR is not used: it has {len(str(long))} bytes, and may have " in caplog.text
    sockets.close()
    directory.close()


def test_this_user_is_trusted() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert is_trusted_peer(ours)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_is_not_trusted() -> None:
    directory = SocketDirectory(Path(tempfile.gettempdir()))
    sockets = directory.open("p")
    path = sockets.stdio.path
    directory.path.chmod(0o711)
    os.chmod(path, 0o666)
    code = f"import socket; c = socket.socket(socket.AF_UNIX); c.connect({path!r}); c.recv(1)"
    with subprocess.Popen(["/usr/bin/env", "python3", "-c", code], user=65534, extra_groups=[]) as client:
        os.set_blocking(sockets.stdio.fd, True)
        connection = sockets.stdio.accept()
        assert not is_trusted_peer(connection)
        connection.close()
    assert client.returncode == 0
    sockets.close()
    directory.close()


@pytest.mark.parametrize("sent", [b"", b"for nobody", bytes(200_000)])
def test_who_is_turned_away_reads_an_end_whatever_it_has_sent(sent: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.setblocking(False)
        if sent:
            theirs.send(sent)
        ours.setblocking(False)
        turn_away(ours)
        assert ours.fileno() == -1
        assert theirs.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            theirs.send(b"x")


def test_who_has_left_by_then_is_turned_away_too() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    turn_away(ours)
    assert ours.fileno() == -1


def test_the_directory_of_a_dead_owner_goes_and_that_of_a_live_one_stays(short_dir: Path) -> None:
    abandoned = short_dir / "fastclaw-12345-abcdefgh"
    abandoned.mkdir()
    (abandoned / "p.io").touch()
    foreign = short_dir / "fastclaw-1000"  # what `default_run_dir` gives a user without another one
    foreign.mkdir()
    first = SocketDirectory(short_dir)
    second = SocketDirectory(short_dir)
    assert {path.name for path in short_dir.iterdir()} == {first.path.name, second.path.name, foreign.name}
    assert first.trouble is None
    shutil.rmtree(first.path)
    assert "is gone" in str(first.trouble)
    first.close()
    second.close()
