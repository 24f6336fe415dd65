"""What root inside may (docs/rights.md), on a real Podman, on both lanes."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw.client import RuntimeClient
from fastclaw.decisions.capabilities import DEFAULT, mask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.engine.conftest import EngineService

pytestmark = [pytest.mark.podman, pytest.mark.timeout(120)]

SERVE = [sys.executable, "-m", "fastclaw", "serve", "--runtime", "podman"]
AS_ROOT = """
set -e
chown 5:6 /file; stat -c %u:%g /file
mkdir -m 0 /shut; ls /shut
mkdir /from /to; touch /from/a; chown 42:43 /from/a; tar -C /from -c a | tar -C /to -x; stat -c %u:%g /to/a
su -s /bin/sh nobody -c 'id -u'
chroot / true
"""
"""Complaint: CopilotKit/OpenBot PR 262, opencontainers/runc#2517, mviereck/x11docker#111, cilium/cilium PR 19903."""


@asynccontextmanager
async def served(service: EngineService, lane: str, **options: Any) -> AsyncIterator[RuntimeClient]:
    options = {"url": service.url, "image": service.image, "lane": lane, "containers": 1, **options}
    async with RuntimeClient.spawn(SERVE, namespace="rights", options=options) as client:
        yield client


async def said(runtime: RuntimeClient, script: str, **request: Any) -> tuple[int | None, str]:
    ran = await runtime.run(["sh", "-c", script], merge_stderr=True, **request)
    return ran.exit_code, ran.stdout.decode()


async def capabilities_of(runtime: RuntimeClient, user: str) -> set[int]:
    """The sets that count for a command, which has no inheritable and no ambient one."""
    _, status = await said(runtime, "grep -E 'Cap(Prm|Eff)' /proc/self/status", user=user)
    return {int(line.split()[1], 16) for line in status.splitlines()}


@pytest.mark.parametrize("lane", ["spawn", "rest"])
async def test_with_capabilities_root_does_what_root_does_and_nobody_else_has_any(
    engine_service: EngineService, lane: str
) -> None:
    """opencontainers/runc#2517: the first thing that agents try, and the error names setgroups and not the cause."""
    async with served(engine_service, lane, capabilities="default") as runtime:
        assert await said(runtime, f"touch /file; {AS_ROOT}") == (0, "5:6\n42:43\n65534\n")
        assert await capabilities_of(runtime, "0") == {mask(DEFAULT)}
        assert await capabilities_of(runtime, "1000") == {0}
        code, text = await said(runtime, "grep NoNewPrivs /proc/self/status; mknod /null c 1 3")
        assert (code, text.split()[:2]) == (1, ["NoNewPrivs:", "1"])
