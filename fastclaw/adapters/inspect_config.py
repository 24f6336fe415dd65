"""What inspect-ai's `sandbox` may say besides `"fastclaw"`: an image, a Containerfile, a compose file, all options."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from inspect_ai.util import (
    ComposeConfig,
    ComposeService,
    SandboxEnvironmentConfigType,
    is_compose_yaml,
    parse_compose_yaml,
)
from pydantic import BaseModel

from fastclaw.adapters.shared_host import shared_host
from fastclaw.options import INHERITED

if TYPE_CHECKING:
    from fastclaw.sandbox import Host, Sandbox

_COMPOSE_FILES = (f"{name}.{kind}" for name in ("compose", "docker-compose") for kind in ("yaml", "yml"))
CONFIG_FILES = [*_COMPOSE_FILES, "Containerfile", "Dockerfile"]
"""Looked for beside a task whose sandbox is `"fastclaw"`, in this order."""

Config = SandboxEnvironmentConfigType | None
"""What inspect-ai hands on of a task's `sandbox`."""

_HEEDED = {"build", "environment", "image", "mem_limit", "network_mode", "pids_limit", "shm_size", "user"}
_HEEDED |= {"working_dir", "x_default"}
_OF_NO_EFFECT = {"command", "cpus", "entrypoint", "hostname", "init", "restart", "stdin_open", "tty"}
"""Of a compose service. What a container runs by itself is fastclaw's own; a share of the processors it cannot hold."""


class FastclawSandbox(BaseModel, frozen=True, extra="allow"):
    """How a task's sandboxes are made.

    Any other field is one of `fastclaw.sandbox.Host.start` (`memory`, `network`, `user`, …), or one that says which
    engine there is (`url`, `storage`, …).

    Parameters:
        image: reference or id; without it, and without `build`, it is a small one made of what is on this host.
        build: a directory to build the image from.
        containerfile: name of the file in it; None is `Containerfile`, else `Dockerfile`.
        build_network: what its RUN steps reach: as with `docker build`, what the engine gives a container.
        working_dir: where commands start and relative paths do; empty is the image's own.
    """

    image: str | None = None
    build: str | None = None
    containerfile: str | None = None
    build_network: Literal["none", "default", "host"] = "default"
    working_dir: str = ""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)  # its own signature knows nothing of other fields

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    async def settled(self) -> FastclawSandbox:
        """The same with its image built, where it is to be. On the loop of the hosts, as the next."""
        if self.build is None:
            return self
        host = await self._host()
        image = await host.build(self.build, file=self.containerfile, network=self.build_network)
        return self.model_copy(update={"image": image, "build": None})

    async def start(self) -> Sandbox:
        """One sandbox."""
        mine = {name: one for name, one in (self.model_extra or {}).items() if name not in INHERITED}
        return await (await self._host()).start(self.image, **mine)

    async def engine_url(self) -> str | None:
        """Where its engine is asked, if that is clear."""
        engines = (await (await self._host()).health()).details.get("podman", {}).get("engines", [])
        return engines[0]["url"] if len(engines) == 1 else None

    async def _host(self) -> Host:
        return await shared_host(**{name: one for name, one in (self.model_extra or {}).items() if name in INHERITED})


def config_of(config: Config) -> FastclawSandbox:
    """What a task's configuration means.

    Parameters:
        config: a directory, a Containerfile, a compose file or the name of an image, to all of which inspect-ai has
            prefixed the task's directory; or a model.

    Raises:
        ValueError: a compose file asks for what a sandbox has not.
    """
    if config is None:
        return FastclawSandbox()
    if isinstance(config, FastclawSandbox):
        return config.model_copy(update={"build": os.path.abspath(config.build)}) if config.build else config
    if isinstance(config, ComposeConfig):
        return _of_compose(config, os.getcwd())
    if not isinstance(config, str):
        raise ValueError(f"fastclaw's sandbox has no configuration of the kind {type(config).__name__}")
    path = Path(config)
    if is_compose_yaml(config):
        return _of_compose(parse_compose_yaml(config), str(path.parent.absolute()))
    if path.is_dir():
        return FastclawSandbox(build=config)
    if path.is_file():
        return FastclawSandbox(build=str(path.parent), containerfile=path.name)
    return FastclawSandbox(image=os.path.relpath(config) if path.is_absolute() else config)


def _of_compose(config: ComposeConfig, directory: str) -> FastclawSandbox:
    if len(config.services) != 1:
        raise ValueError(f"a sample has one sandbox here, and the compose file has {', '.join(config.services)}")
    (service,) = config.services.values()
    unknown = service.model_fields_set - _OF_NO_EFFECT - _HEEDED - service.extensions.keys()
    if service.network_mode not in (None, "none"):
        unknown |= {"network_mode"}
    if unknown:
        raise ValueError(f"fastclaw has no {', '.join(sorted(unknown))} of a compose file: docs/adapters/inspect.md")
    said = {
        "env": _variables(service),
        "user": service.user,
        "memory": service.mem_limit,
        "shm": service.shm_size,
        "pids": None if service.pids_limit is None else int(service.pids_limit),
        "working_dir": service.working_dir,
        **_image_of(service, directory),
        **service.extensions.get("x-fastclaw", {}),
    }
    return FastclawSandbox(**{name: one for name, one in said.items() if one is not None})


def _image_of(service: ComposeService, directory: str) -> dict[str, str | None]:
    if service.build is None:
        return {"image": service.image}
    if isinstance(service.build, str):
        return {"build": os.path.join(directory, service.build)}
    context = os.path.join(directory, service.build.context or ".")
    return {"build": context, "containerfile": service.build.dockerfile}


def _variables(service: ComposeService) -> dict[str, str]:
    """One without a value has this program's own, as compose has it."""
    given = service.environment or {}
    if isinstance(given, list):
        given = {name: value if sign else None for name, sign, value in (one.partition("=") for one in given)}
    return {name: os.environ.get(name, "") if value is None else value for name, value in given.items()}
