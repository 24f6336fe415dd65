"""The image of these tests as a Containerfile, once for each default user, and a sandbox as inspect-ai makes one."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from fastclaw.adapters.inspect import FastclawSandboxEnvironment
from tests.adapters.image import USER, build_context

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator
    from contextlib import AbstractAsyncContextManager

    from inspect_ai.util import SandboxEnvironment

    from fastclaw.adapters.inspect_config import Config

    Sandboxes = Callable[[Config], AbstractAsyncContextManager[SandboxEnvironment]]


PASSED: Counter[str] = Counter()
"""How many of the self checks have passed, on each kind of sandbox."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Counts them; a failure that is expected counts as one."""
    report = yield
    if report.when == "call" and report.passed and "sandbox_env" in item.fixturenames:
        PASSED[str(item.callspec.params["sandbox_env"])] += 1
    return report


@pytest.fixture(scope="session")
def containerfiles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Path of the Containerfile whose image has this default user."""
    directory = tmp_path_factory.mktemp("images")
    users = {"root": None, USER: USER}
    return {name: str(build_context(directory / name, user) / "Containerfile") for name, user in users.items()}


@pytest.fixture(scope="session")
def sandboxes() -> Sandboxes:
    """Makes the sandbox of one sample, as inspect-ai does, and ends it."""
    provider = FastclawSandboxEnvironment
    tasks: set[Config] = set()

    @asynccontextmanager
    async def made(config: Config) -> AsyncIterator[SandboxEnvironment]:
        if config not in tasks:
            await provider.task_init("task", config)
            tasks.add(config)
        environments = await provider.sample_init("task", config, {})
        try:
            yield environments["default"]
        finally:
            await provider.sample_cleanup("task", config, environments, interrupted=False)

    return made
