"""Which kind of sandbox an environment gets: by `options.runtime`, else by what the command line said.

`auto` takes podman where an engine is usable and `local`, which isolates nothing, with a warning where none is.
"""

import difflib
import logging
from collections.abc import Mapping
from typing import Any

from fastclaw.errors import InvalidParams
from fastclaw.options import RUNTIMES, Options
from fastclaw.podman.service.facts import why_no_engine
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
    reason = why_no_engine(read_options(given, Options))
    if reason is None:
        return "podman", []
    warning = f"no usable engine ({reason}); taking the local runtime, which isolates nothing"
    logger.warning("%s", warning)
    return "local", [warning]


def has_engine(given: Mapping[str, Any], default: str = "auto") -> bool:
    """Whether `choose` gives podman."""
    wanted = require_known(given, default)
    return wanted == "podman" or (wanted == "auto" and why_no_engine(read_options(given, Options)) is None)


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
    from fastclaw.runtimes.podman import PodmanSandboxes

    return PodmanSandboxes


def _unknown(wanted: str) -> InvalidParams:
    nearest = next(iter(difflib.get_close_matches(wanted, RUNTIMES, n=1)), None)
    hint = f"did you mean {nearest!r}?" if nearest else f"there are auto, {', '.join(RUNTIMES)}"
    path = "$.options.runtime"
    return InvalidParams(f"{path}: no runtime {wanted!r}; {hint}", path=path, nearest=nearest)
