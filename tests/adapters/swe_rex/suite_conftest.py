"""The fixtures of SWE-ReX's own suite, for its tests of a runtime: ours, or, without an image, its LocalRuntime.

Copied beside those tests as their conftest.py. They look at files of the runtime on this host, too: a workspace brings
the directory in which pytest makes its own.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from swerex.deployment.local import LocalDeployment
from swerex.runtime.abstract import BashAction, CloseBashSessionRequest, Command, CreateBashSessionRequest

from fastclaw.adapters.swe_rex import Deployment
from fastclaw.sandbox import Workspace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from swerex.deployment.abstract import AbstractDeployment
    from swerex.runtime.abstract import AbstractRuntime


def _deployment(shared: str) -> AbstractDeployment:
    image = os.environ.get("SWE_REX_IMAGE")
    if image is None:
        return LocalDeployment()
    return Deployment(image=image, workspace=Workspace(source=shared, target=shared))


@pytest.fixture
async def remote_runtime(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AbstractRuntime]:
    """Has this name in the suite, which has a server between itself and its LocalRuntime."""
    deployment = _deployment(str(tmp_path_factory.getbasetemp()))
    await deployment.start()
    yield deployment.runtime
    await deployment.stop()


@pytest.fixture
async def runtime_with_default_session(remote_runtime: AbstractRuntime) -> AsyncIterator[AbstractRuntime]:
    await remote_runtime.create_session(CreateBashSessionRequest())
    yield remote_runtime
    await remote_runtime.close_session(CloseBashSessionRequest())


class _Action(BashAction):
    timeout: float | None = 5


class _Command(Command):
    timeout: float | None = 5
