"""A plugin of pytest that has mini-swe-agent's own tests of its `docker` and `local` environments run on ours.

Those tests are in no distribution of it, only in its repository. In a checkout of the installed release:

    python -m pytest -p tests.adapters.mini_swe_agent.redirect tests/environments/test_docker.py …/test_local.py

FASTCLAW_TEST_IMAGE is the image that they have in place of python:3.11; without it they run as they are, on this host.
"""

from __future__ import annotations

import os
from typing import Any

from minisweagent.environments import docker, local

from fastclaw.adapters.mini_swe_agent import Environment, EnvironmentConfig

IMAGE = os.environ.get("FASTCLAW_TEST_IMAGE")


class DockerConfig(EnvironmentConfig):
    """With the field that names the docker command: the tests hand it over, and look whether it is there."""

    executable: str = "docker"


class InDockersPlace(Environment):
    def __init__(self, *, image: str, **settings: Any) -> None:
        super().__init__(config_class=DockerConfig, image=IMAGE, **settings)


class LocalConfig(EnvironmentConfig):
    """With the defaults of `local`."""

    image: str | None = None
    cwd: str = ""


class InLocalsPlace(Environment):
    """On fastclaw's `local` runtime, whose processes are this host's: the tests look at files and processes here."""

    def __init__(self, *, env: dict[str, str] | None = None, **settings: Any) -> None:
        self.own = env or {}
        ours = {"interpreter": ["sh", "-c"], "host": {"runtime": "local"}}
        super().__init__(config_class=LocalConfig, **ours | settings)

    def execute(self, action: dict[str, Any], cwd: str = "", *, timeout: int | None = None) -> dict[str, Any]:
        self.config.env = os.environ | self.own  # what `local` gives its commands
        return super().execute(action, cwd or self.config.cwd or os.getcwd(), timeout=timeout)


if IMAGE:
    docker.DockerEnvironment, docker.DockerEnvironmentConfig = InDockersPlace, DockerConfig
    local.LocalEnvironment, local.LocalEnvironmentConfig = InLocalsPlace, LocalConfig
