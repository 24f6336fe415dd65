"""inspect-ai's own 44 checks of a sandbox provider, on fastclaw, and on its own `local` provider beside it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from inspect_ai.util._sandbox import self_check
from inspect_ai.util._sandbox.local import LocalSandboxEnvironment
from inspect_ai.util._sandbox.self_check import *  # noqa: F403  # the way in which its docstring asks to be used

from tests.adapters.image import USER
from tests.adapters.inspect.conftest import PASSED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from inspect_ai.util import SandboxEnvironment

    from tests.adapters.conftest import Report
    from tests.adapters.inspect.conftest import Sandboxes

OF_MODES = (
    "test_read_file_not_allowed",
    "test_write_text_file_without_permissions",
    "test_write_binary_file_without_permissions",
)
ROOT_MAY = dict.fromkeys(
    OF_MODES, "root with CAP_DAC_OVERRIDE, which adduser and apt need, reads and writes whatever a file's mode says"
)
LOCAL_CANNOT = {
    "test_exec_as_user": "it has one user",
    "test_exec_timeout_not_raised_on_fast_signal_death": "it says -15 where a shell says 143",
    **(ROOT_MAY if os.geteuid() == 0 else {}),
}
EXPECTED_TO_FAIL: dict[str, dict[str, str]] = {"root": ROOT_MAY, USER: {}, "local": LOCAL_CANNOT}


@pytest.fixture(scope="module", autouse=True)
def counted(report: Report) -> Iterator[None]:
    """Says how many passed."""
    yield
    total = len(self_check.__all__)
    control = PASSED["local"], total
    for user in (USER, "root"):
        report(f"self_check, default user {user}", PASSED[user], total, control)


@pytest.fixture(params=[*EXPECTED_TO_FAIL])
async def sandbox_env(
    request: pytest.FixtureRequest, containerfiles: dict[str, str], sandboxes: Sandboxes
) -> AsyncIterator[SandboxEnvironment]:
    """What the checks ask for."""
    kind = request.param
    reason = EXPECTED_TO_FAIL[kind].get(request.node.originalname)
    if reason is not None:
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    if kind != "local":
        async with sandboxes(containerfiles[kind]) as sandbox:
            yield sandbox
        return
    environments = await LocalSandboxEnvironment.sample_init("task", None, {})
    yield environments["default"]
    await LocalSandboxEnvironment.sample_cleanup("task", None, environments, interrupted=False)
