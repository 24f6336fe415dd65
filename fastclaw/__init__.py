"""fastclaw: a runtime that starts and holds agent worker processes, for supervisors that speak JSON-RPC.

The names of the SDK are here, each imported with its first use: importing this package costs nothing, and brings in
neither an engine's client nor an event loop nor the command line.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False  # that of `typing` costs more than all of this
if TYPE_CHECKING:
    from fastclaw.errors import *
    from fastclaw.files import FileRuntime, Files
    from fastclaw.images import ImageRuntime
    from fastclaw.progress import Progress
    from fastclaw.runtime import *
    from fastclaw.server.harness import RuntimeHarness

__all__ = [
    "EnvironmentInfo",
    "EnvironmentRequest",
    "EnvironmentRuntime",
    "ExecFailed",
    "ExecRequest",
    "ExecResult",
    "ExitRecord",
    "FastclawError",
    "FileRuntime",
    "Files",
    "GroupLimits",
    "HealthStatus",
    "ImageRuntime",
    "InitializeParams",
    "InitializeResult",
    "InternalError",
    "InvalidParams",
    "InvalidRequest",
    "InvalidState",
    "IoError",
    "ListedEnvironment",
    "MethodNotFound",
    "ParseError",
    "ProcessInfo",
    "ProcessRuntime",
    "Progress",
    "ProtocolError",
    "RequestCancelled",
    "RunRequest",
    "RunResult",
    "Runtime",
    "RuntimeHarness",
    "RuntimeSdkError",
    "StartFailed",
    "__version__",
]

_HOMES = (
    "fastclaw.runtime",
    "fastclaw.files",
    "fastclaw.images",
    "fastclaw.progress",
    "fastclaw.errors",
    "fastclaw.server.harness",
)


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in __all__:
        for home in _HOMES:
            if (found := getattr(import_module(home), name, None)) is not None:
                globals()[name] = found
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
