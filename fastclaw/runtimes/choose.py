"""Which kind of sandbox an environment gets: by `options.runtime`, else by what the command line said.

`auto` takes podman where it is usable, else docker where that is, else `local`, which isolates nothing, with a warning.
"""

import difflib
import logging
from collections.abc import Mapping
from typing import Any

from fastclaw.engine.service.facts import docker_group, docker_url, why_no_docker, why_no_engine
from fastclaw.errors import InvalidParams
from fastclaw.options import ENGINES, RUNTIMES, Options
from fastclaw.runtimes.read_options import read_options
from fastclaw.runtimes.sandbox import SandboxFactory

logger = logging.getLogger(__name__)


def choose(given: Mapping[str, Any], default: str = "auto") -> tuple[str, list[str]]:
    """The runtime of an environment, and what its owner has to know of that, each in a line.

    Parameters:
        given: options as the supervisor sent them: `url` and `oci_runtime` decide whether an engine is usable.
        default: taken where `runtime` is left out or `auto`.

    Raises:
        InvalidParams: there is no such runtime (`data.nearest`), or another option is wrong.
    """
    wanted = require_known(given, default)
    if wanted != "auto":
        return wanted, []
    found = engine_runtime(given, default)
    if found is not None:
        return found, []
    options = read_options(given, Options)
    reason = why_no_engine(options)
    if (group := docker_group(docker_url(options))) is not None:
        reason = f"{reason}; the Docker that is here answers members of the group {group} only"
    warning = f"no usable engine ({reason}); taking the local runtime, which isolates nothing"
    logger.warning("%s", warning)
    return "local", [warning]


def engine_runtime(given: Mapping[str, Any], default: str = "auto") -> str | None:
    """The runtime that `choose` gives, where that has an engine."""
    wanted = require_known(given, default)
    if wanted == "auto":
        options = read_options(given, Options)
        found = (("podman", why_no_engine), ("docker", why_no_docker))
        return next((name for name, why_none in found if why_none(options) is None), None)
    return wanted if wanted in ENGINES else None


def require_known(given: Mapping[str, Any], default: str = "auto") -> str:
    """The runtime that is asked for, or `auto`.

    Raises:
        InvalidParams: there is no such runtime (`data.nearest`).
    """
    wanted = given.get("runtime", "auto")
    wanted = default if wanted == "auto" else str(wanted)
    if wanted not in ("auto", *RUNTIMES):
        raise _unknown(wanted)
    return wanted


def factory_of(runtime: str) -> type[SandboxFactory]:
    """What makes the sandboxes of a runtime. Loaded when it is needed: Podman's client takes as long as all the rest of
    `fastclaw serve`."""
    if runtime == "memory":
        from fastclaw.runtimes.memory import MemorySandboxes

        return MemorySandboxes
    if runtime == "local":
        from fastclaw.runtimes.local import LocalSandboxes

        return LocalSandboxes
    from fastclaw.runtimes.podman import DockerSandboxes, PodmanSandboxes

    return DockerSandboxes if runtime == "docker" else PodmanSandboxes


def _unknown(wanted: str) -> InvalidParams:
    nearest = next(iter(difflib.get_close_matches(wanted, RUNTIMES, n=1)), None)
    hint = f"did you mean {nearest!r}?" if nearest else f"there are auto, {', '.join(RUNTIMES)}"
    path = "$.options.runtime"
    return InvalidParams(f"{path}: no runtime {wanted!r}; {hint}", path=path, nearest=nearest)
