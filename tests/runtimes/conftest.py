"""Sandboxes that do what the test says, for a host that believes them to be of the runtime `memory`."""

import pytest

from fastclaw.runtimes import host
from tests.runtimes.scripted import ScriptedSandboxes


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> ScriptedSandboxes:
    """What the runtime `memory` makes instead of its own."""
    factory = ScriptedSandboxes()
    monkeypatch.setattr(host, "factory_of", lambda runtime: lambda namespace, sockets: factory)
    return factory
