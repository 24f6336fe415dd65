"""Which kind of sandbox an environment gets: by `options.runtime`, else by what the command line said.

`auto` takes podman where it is usable, else docker where that is, else `local`, which isolates nothing, with a warning.
"""

import difflib
import logging
from collections.abc import Mapping
from typing import Any

from fastclaw.engine.service.facts import docker_group, docker_url, why_no_docker, why_no_engine
from fastclaw.errors import InvalidParams
from fastclaw.options import ENGINE_OPTIONS, ENGINES, RUNTIMES, Options
from fastclaw.runtimes.read_options import read_options
from fastclaw.runtimes.sandbox import SandboxFactory

logger = logging.getLogger(__name__)


class Chooser:
    """Chooses what each environment of one connection gets.

    To see whether an engine is usable takes milliseconds of the event loop and one of the engine's programs, so one
    that was found is not looked for again: where it has gone since, a start says so, and never does without isolation.

    Parameters:
        default: taken where `runtime` is left out or `auto`.
    """

    def __init__(self, default: str = "auto") -> None:
        self._default = default
        self._found: tuple[tuple[Any, ...], str] | None = None

    def choose(self, given: Mapping[str, Any]) -> tuple[str, list[str]]:
        """The runtime of an environment, and what its owner has to know of that, each in a line.

        Parameters:
            given: options as the supervisor sent them: some decide whether an engine is usable.

        Raises:
            InvalidParams: there is no such runtime (`data.nearest`), or another option is wrong.
        """
        wanted = require_known(given, self._default)
        if wanted != "auto":
            return wanted, []
        options = read_options(given, Options)
        found, reason = self._usable(options)
        if found is not None:
            return found, []
        if (group := docker_group(docker_url(options))) is not None:
            reason = f"{reason}; the Docker that is here answers members of the group {group} only"
        warning = f"no usable engine ({reason}); taking the local runtime, which isolates nothing"
        logger.warning("%s", warning)
        return "local", [warning]

    def engine(self, given: Mapping[str, Any]) -> str | None:
        """The runtime that `choose` gives, where that has an engine."""
        wanted = require_known(given, self._default)
        if wanted == "auto":
            return self._usable(read_options(given, Options))[0]
        return wanted if wanted in ENGINES else None

    def _usable(self, options: Options) -> tuple[str | None, str]:
        """The runtime whose engine can be used, or why there is no Podman."""
        meant = tuple(getattr(options, name) for name in ENGINE_OPTIONS)
        if self._found is not None and self._found[0] == meant:
            return self._found[1], ""
        why_no_podman = why_no_engine(options)
        if why_no_podman is None:
            found = "podman"
        elif why_no_docker(options) is None:
            found = "docker"
        else:
            return None, why_no_podman
        self._found = meant, found
        return found, ""


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
