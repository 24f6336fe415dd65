"""The methods of the wire: what each takes, and what it answers.

Dispatch reads params by this table, `fastclaw schema` shows it, and a test holds the pages of the contract to it.
"""

from typing import NamedTuple

from msgspec import UNSET, Struct, UnsetType

from fastclaw.files import (
    DirPage,
    FileContent,
    FileStat,
    ListDir,
    MakeDir,
    Move,
    ReadFile,
    ReadTar,
    Remove,
    StatFile,
    TarContent,
    Unpacked,
    WriteFile,
    WriteTar,
    Written,
)
from fastclaw.images import BuildImage, ImageResult, LoadedImages, LoadImages, PullImage
from fastclaw.params import (
    CancelParams,
    EnvironmentParams,
    HealthParams,
    KillParams,
    ListParams,
    NoParams,
    PoolParams,
    ResizeParams,
    SignalParams,
    WaitParams,
)
from fastclaw.runtime import (
    EnvironmentInfo,
    EnvironmentRequest,
    ExecRequest,
    ExecResult,
    ExitRecord,
    HealthStatus,
    InitializeParams,
    InitializeResult,
    ListedEnvironment,
    ProcessInfo,
    RunRequest,
    RunResult,
)


class Nothing(Struct, frozen=True):
    """The answer of a method that has nothing to tell but that it is done."""


class Server(Struct, frozen=True):
    """Who answers."""

    name: str
    version: str


class Initialized(InitializeResult, frozen=True, kw_only=True):
    """The answer to `initialize` where no environment was started.

    Parameters:
        capabilities: the optional parts of the contract that there are.
        control: where the control socket is; left out where there is none.
    """

    server: Server
    capabilities: list[str]
    control: str | UnsetType = UNSET


class InitializedMain(EnvironmentInfo, frozen=True, kw_only=True):
    """The answer to `initialize` with the environment `main`.

    Parameters:
        control: as in `Initialized`.
    """

    server: Server
    control: str | UnsetType = UNSET


class ProcessPage(Struct, frozen=True, kw_only=True):
    """Processes of an environment. `next`: present where there are more, for `after`."""

    next: str | UnsetType = UNSET
    processes: list[ProcessInfo]


class EnvironmentList(Struct, frozen=True, kw_only=True):
    """All environments."""

    environments: list[ListedEnvironment]


class Shape(NamedTuple):
    """One method.

    Parameters:
        params: the shape of its params.
        results: its answer has one of these shapes.
    """

    params: type[Struct]
    results: tuple[type[Struct], ...]


SHAPES = {
    "initialize": Shape(InitializeParams, (InitializedMain, Initialized)),
    "environment_start": Shape(EnvironmentRequest, (EnvironmentInfo,)),
    "environment_stop": Shape(EnvironmentParams, (Nothing,)),
    "environment_reset": Shape(EnvironmentParams, (EnvironmentInfo,)),
    "environment_list": Shape(NoParams, (EnvironmentList,)),
    "pool_set": Shape(PoolParams, (Nothing,)),
    "exec": Shape(ExecRequest, (ExecResult,)),
    "run": Shape(RunRequest, (RunResult,)),
    "image_pull": Shape(PullImage, (ImageResult,)),
    "image_build": Shape(BuildImage, (ImageResult,)),
    "image_load": Shape(LoadImages, (LoadedImages,)),
    "read_file": Shape(ReadFile, (FileContent, ExecResult)),
    "write_file": Shape(WriteFile, (Written, ExecResult)),
    "stat": Shape(StatFile, (FileStat,)),
    "list_dir": Shape(ListDir, (DirPage,)),
    "make_dir": Shape(MakeDir, (Nothing,)),
    "remove": Shape(Remove, (Nothing,)),
    "move": Shape(Move, (Nothing,)),
    "read_tar": Shape(ReadTar, (TarContent, ExecResult)),
    "write_tar": Shape(WriteTar, (Unpacked, ExecResult)),
    "cancel": Shape(CancelParams, (Nothing,)),
    "health": Shape(HealthParams, (HealthStatus,)),
    "kill": Shape(KillParams, (Nothing,)),
    "shutdown": Shape(NoParams, (Nothing,)),
    "stop": Shape(NoParams, (Nothing,)),
    "wait": Shape(WaitParams, (ExitRecord,)),
    "list": Shape(ListParams, (ProcessPage,)),
    "signal": Shape(SignalParams, (Nothing,)),
    "resize": Shape(ResizeParams, (Nothing,)),
}
"""Each method by its name."""
