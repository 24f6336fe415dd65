"""LangChain's tests of sandboxes for ours."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from langchain_tests.integration_tests import SandboxIntegrationTests

from fastclaw.adapters.deepagents import FastclawSandbox
from fastclaw.sandbox.sync import Host

if TYPE_CHECKING:
    from collections.abc import Iterator


class TestSandbox(SandboxIntegrationTests):
    @pytest.fixture(scope="class")
    def sandbox(self) -> Iterator[FastclawSandbox]:
        with Host() as host, host.start(os.environ["FASTCLAW_TEST_IMAGE"]) as box:
            yield FastclawSandbox(box)
