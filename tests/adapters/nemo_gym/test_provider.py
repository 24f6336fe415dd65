"""Sandboxes by NeMo Gym's own API: their start, commands, files and end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from nemo_gym.sandbox import (
    AsyncSandbox,
    ConnectableProvider,
    Sandbox,
    SandboxCreateError,
    SandboxSpec,
    SandboxStatus,
    SupportsSandboxEndpoint,
    SupportsSandboxPty,
    create_provider,
    list_providers,
)

from fastclaw.adapters.shared_host import shared_host
from fastclaw.sandbox.loop_thread import loop_thread
from tests.adapters.suites import load_image, program_of

SLEEPS = "cat /proc/[0-9]*/comm | grep -cx sleep"
FASTCLAW: dict[str, Any] = {"fastclaw": {}}


def test_the_provider_is_found_and_offers_what_it_says() -> None:
    assert "fastclaw" in list_providers()
    provider = create_provider(FASTCLAW)
    assert isinstance(provider, SupportsSandboxPty)
    assert isinstance(provider, ConnectableProvider)
    assert not isinstance(provider, SupportsSandboxEndpoint)


async def test_a_spec_is_what_the_sandbox_is(tmp_path: Path) -> None:
    spec = SandboxSpec(
        workdir="/sandbox/b",
        env={"GREETING": "hello"},
        files={"in.txt": "relative\n", "/tests/deep/test.sh": "absolute\n"},
        resources={"memory_mib": 128},
        ttl_s=600,
        ready_timeout_s=60,
        provider_options={"user": "65534"},
    )
    async with AsyncSandbox(FASTCLAW, spec) as sandbox:
        await sandbox.start()
        told = await sandbox.exec("id -u; pwd; echo $GREETING; cat in.txt /tests/deep/test.sh; echo out > out.txt")
        assert told.stdout == "65534\n/sandbox/b\nhello\nrelative\nabsolute\n"
        await sandbox.download("out.txt", tmp_path / "new" / "out.txt")
        assert (tmp_path / "new" / "out.txt").read_text() == "out\n"
        assert await sandbox.status() is SandboxStatus.RUNNING
        health = await loop_thread().bring(sandbox._handle.raw.sandbox.health())
        assert health.details["limits"]["memory"]["limit_bytes"] == 128 << 20
        assert any(one.ends_at for one in await listed())
    assert await sandbox.status() is SandboxStatus.STOPPED


async def test_a_command_has_its_streams_apart_its_code_variables_and_user(sandbox: AsyncSandbox) -> None:
    done = await sandbox.exec("id -u; echo $A >&2; exit 7", env={"A": "b"}, user=65534, cwd="/")
    assert (done.stdout, done.stderr, done.return_code, done.error_type) == ("65534\n", "b\n", 7, None)
    assert (await sandbox.exec("kill -9 $$")).return_code == 137


async def test_a_timeout_ends_the_whole_tree_and_keeps_what_was_written(sandbox: AsyncSandbox) -> None:
    done = await sandbox.exec("echo before; sleep 100 & sleep 100", timeout_s=0.2)
    assert (done.stdout, done.return_code, done.error_type) == ("before\n", 125, "timeout")
    assert "timed out after 0.2 s" in done.stderr
    assert (await sandbox.exec(SLEEPS)).stdout == "0\n"


async def test_a_call_that_is_cancelled_ends_its_tree(sandbox: AsyncSandbox) -> None:
    running = asyncio.create_task(sandbox.exec("touch started; sleep 100"))
    await sandbox.exec("until [ -e started ]; do :; done", timeout_s=30)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await sandbox.exec(f"until [ $({SLEEPS}) = 0 ]; do :; done", timeout_s=30)).return_code == 0


async def test_what_does_not_start_is_an_error_of_the_sandbox(sandbox: AsyncSandbox) -> None:
    for how in ({"cwd": "/nowhere"}, {"user": "nobody-of-that-name"}):
        done = await sandbox.exec("true", **how)
        assert (done.return_code, done.error_type) == (125, "sandbox")
        assert next(iter(how.values())) in done.stderr


async def test_a_service_that_a_command_starts_goes_on(sandbox: AsyncSandbox) -> None:
    await sandbox.exec("sleep 100 &", timeout_s=30, preserve_background_services=True)
    assert (await sandbox.exec(SLEEPS)).stdout == "1\n"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (SandboxSpec(ports=(8080,)), "ports"),
        (SandboxSpec(entrypoint=["serve"]), "entrypoint"),
        (SandboxSpec(resources={"gpu": 1}), "gpu"),
        (SandboxSpec(provider_options={"memmory": "1g"}), "memmory"),
        (SandboxSpec(image="localhost/no-such-image:1", provider_options={"pull": "never"}), "no-such-image"),
    ],
)
async def test_what_cannot_be_had_is_refused(spec: SandboxSpec, said: str) -> None:
    before = await listed()
    with pytest.raises(SandboxCreateError, match=said):
        await create_provider(FASTCLAW).create(spec)
    assert await listed() == before


async def test_what_is_not_limited_is_said(caplog: pytest.LogCaptureFixture) -> None:
    spec = SandboxSpec(resources={"cpu": 2, "disk_gib": 20})
    async with AsyncSandbox(FASTCLAW, spec) as sandbox:
        await sandbox.start()
    assert "cpu" in caplog.text


async def test_a_sandbox_is_reached_again_in_the_same_process(sandbox: AsyncSandbox) -> None:
    await sandbox.exec("echo here > mark")
    descriptor = await sandbox.serialize()
    again = await AsyncSandbox.connect(descriptor, provider=create_provider(FASTCLAW))
    assert (await again.exec("cat mark")).stdout == "here\n"
    await again.disconnect()
    assert await sandbox.status() is SandboxStatus.RUNNING
    await sandbox.stop()
    with pytest.raises(SandboxCreateError, match="another process"):
        await AsyncSandbox.connect(descriptor, provider=create_provider(FASTCLAW))


async def test_closing_twice_is_closing(sandbox: AsyncSandbox) -> None:
    provider, handle = sandbox._provider, sandbox._handle
    await provider.close(handle)
    await provider.close(handle)
    assert await provider.status(handle) is SandboxStatus.STOPPED


def test_the_api_without_await_has_the_same() -> None:
    with Sandbox(FASTCLAW, SandboxSpec(files={"/tmp/a": "b"})) as sandbox:
        assert sandbox.start().exec("cat /tmp/a").stdout == "b"


def test_the_program_of_the_page_prints_what_it_computes(tmp_path: Path) -> None:
    page = Path(__file__).parents[3] / "docs" / "adapters" / "nemo-gym.md"
    program = program_of(page, load_image(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "0 42\n\n"), done.stderr


async def listed() -> list[Any]:
    """The sandboxes of the host that all tests share."""

    async def ask() -> list[Any]:
        return await (await shared_host()).list()

    return await loop_thread().bring(ask())
