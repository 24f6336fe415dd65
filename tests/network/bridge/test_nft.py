"""The program nft, and what becomes of its refusals."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from fastclaw import network_limits
from fastclaw.errors import StartFailed
from fastclaw.network.bridge import netns, nft
from fastclaw.podman.service.facts import find_program
from tests.network.bridge.rig import need_bridge

if TYPE_CHECKING:
    from pathlib import Path

TABLE = "fastclaw_1_2_3_0123abcd"


def stand_in(directory: Path, script: str) -> str:
    path = directory / "nft"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


async def test_a_transaction_is_carried_out_whole_or_not_at_all() -> None:
    need_bridge()
    program = find_program("nft")
    assert program is not None

    def try_it() -> None:
        netns.enter_new()
        nft.apply(program, f"add table inet {TABLE}\nadd table inet somebodys\n")
        assert nft.tables(program) == [TABLE]
        with pytest.raises(StartFailed, match=r"nft: .*No such file or directory") as caught:
            nft.apply(program, f"delete table inet {TABLE}\ndelete table inet nobodys\n")
        assert caught.value.reason == "network_failed"
        assert "\n" not in str(caught.value)
        assert nft.tables(program) == [TABLE]
        nft.apply(program, f"delete table inet {TABLE}\n")
        assert nft.tables(program) == []

    await netns.in_own_thread(try_it)


def test_one_that_is_not_there() -> None:
    with pytest.raises(StartFailed, match="cannot run /nonexistent/nft: No such file") as caught:
        nft.tables("/nonexistent/nft")
    assert caught.value.reason == "network_failed"


def test_one_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_limits, "NFT_MS", 50)
    with pytest.raises(StartFailed, match="does not answer within 50 ms"):
        nft.tables(stand_in(tmp_path, "exec sleep 60"))


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo 'Error: Operation not permitted' >&2; echo '   ^^^' >&2; exit 1", "nft: Operation not permitted"),
        ("exit 1", "nft: it gives no reason"),
    ],
)
def test_one_that_refuses(tmp_path: Path, script: str, says: str) -> None:
    with pytest.raises(StartFailed) as caught:
        nft.apply(stand_in(tmp_path, f"cat > {os.devnull}; {script}"), "x")
    assert str(caught.value) == f"start failed: {says}"
