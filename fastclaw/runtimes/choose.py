"""Chooses the runtime when `initialize` comes: by `options.runtime`, else by what the command line said.

`auto` takes podman where an engine is usable and `local`, which isolates nothing, with a warning where none is.
"""

import difflib
import logging

from fastclaw.errors import InvalidParams
from fastclaw.options import RUNTIMES
from fastclaw.podman.service.facts import why_no_engine
from fastclaw.runtime import InitializeParams, ProcessRuntime
from fastclaw.runtimes.local import LocalRuntime
from fastclaw.runtimes.memory import MemoryRuntime
from fastclaw.runtimes.read_options import read_options

logger = logging.getLogger(__name__)


def choose_runtime(params: InitializeParams, default: str = "auto") -> ProcessRuntime:
    """The runtime to start.

    Parameters:
        params: as the supervisor sent them: `url` and `oci_runtime` decide whether an engine is usable.
        default: taken where `options.runtime` is left out or `auto`.

    Raises:
        InvalidParams: there is no such runtime (`data.nearest`), or another option is wrong.
    """
    wanted = params.options.get("runtime", "auto")
    wanted = default if wanted == "auto" else str(wanted)
    if wanted not in ("auto", *RUNTIMES):
        raise _unknown(wanted)
    if wanted == "memory":
        return MemoryRuntime()
    if wanted == "local":
        return LocalRuntime()
    reason = why_no_engine(read_options(params)) if wanted == "auto" else None
    if reason is None:
        return _podman()
    warning = f"no usable engine ({reason}); taking the local runtime, which isolates nothing"
    logger.warning("%s", warning)
    return LocalRuntime([warning])


def _podman() -> ProcessRuntime:
    """Loaded when it is needed: Podman's client takes as long as all the rest of `fastclaw serve`."""
    from fastclaw.runtimes.podman import ContainerRuntime

    return ContainerRuntime()


def _unknown(wanted: str) -> InvalidParams:
    nearest = next(iter(difflib.get_close_matches(wanted, RUNTIMES, n=1)), None)
    hint = f"did you mean {nearest!r}?" if nearest else f"there are auto, {', '.join(RUNTIMES)}"
    path = "$.options.runtime"
    return InvalidParams(f"{path}: no runtime {wanted!r}; {hint}", path=path, nearest=nearest)
