"""Which capabilities may be had."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastclaw.errors import InvalidParams
from fastclaw.podman.capabilities import DEFAULT, NUMBERS, mask, read_capabilities


def test_none_is_none_and_default_has_nothing_unusual() -> None:
    assert read_capabilities("none") == ()
    assert read_capabilities("default") == DEFAULT
    assert len(DEFAULT) == 10


@pytest.mark.parametrize("name", ["CHOWN", "CAP_CHOWN", "cap_chown", "chown"])
def test_a_name_is_one_with_and_without_its_prefix(name: str) -> None:
    assert read_capabilities([name, "CHOWN"]) == ("CAP_CHOWN",)


@pytest.mark.parametrize("name", ["SYS_ADMIN", "CAP_NET_ADMIN", "SYS_PTRACE", "CAP_CAP_CHOWN", "", "CAP_"])
def test_what_would_undo_the_sandbox_cannot_be_had(name: str) -> None:
    with pytest.raises(InvalidParams, match="cannot be had; there are CHOWN, ") as refused:
        read_capabilities(["CHOWN", name])
    assert refused.value.reason == "unsupported"


def test_their_numbers_are_the_kernels() -> None:
    header = Path("/usr/include/linux/capability.h").read_text()
    defined = dict(re.findall(r"^#define (CAP_\w+)\s+(\d+)$", header, re.MULTILINE))
    assert {name: int(defined[name]) for name in NUMBERS} == NUMBERS
    assert mask(["CAP_CHOWN", "CAP_SETFCAP"]) == 0x80000001
