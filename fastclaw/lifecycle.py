"""The legal moves of a runtime, of an environment and of a process, as tables that everything else reads.

A state changes only through `move`; a move that the table lacks is a bug and raises. Which call is allowed in which
state of a runtime is a table as well, with the error that a call gets otherwise.
"""

from enum import Enum
from typing import Final, Generic, TypeVar

from fastclaw.errors import InternalError, InvalidState


class RuntimeState(Enum):
    """A runtime, from its creation to its end."""

    NEW = "not initialized"
    STARTING = "initializing"
    RUNNING = "running"
    STOPPING = "shutting down"
    STOPPED = "stopped"


class ProcessState(Enum):
    """A process, from the lane's word that it runs until its record is forgotten."""

    RUNNING = "running"
    LINGERING = "exited, sockets open"
    CLOSED = "exited, sockets closed"


class EnvironmentState(Enum):
    """An environment, from its name being taken until nothing of it is left."""

    STARTING = "starting"
    RUNNING = "running"
    RESETTING = "being reset"
    STOPPING = "stopping"
    GONE = "gone"


State = TypeVar("State", bound=Enum)

RUNTIME_MOVES: Final[dict[RuntimeState, frozenset[RuntimeState]]] = {
    RuntimeState.NEW: frozenset({RuntimeState.STARTING, RuntimeState.STOPPING}),
    # Back to NEW: a start that failed and cleaned up may be tried again.
    RuntimeState.STARTING: frozenset({RuntimeState.RUNNING, RuntimeState.NEW, RuntimeState.STOPPING}),
    RuntimeState.RUNNING: frozenset({RuntimeState.STOPPING}),
    RuntimeState.STOPPING: frozenset({RuntimeState.STOPPED}),
    RuntimeState.STOPPED: frozenset(),
}

PROCESS_MOVES: Final[dict[ProcessState, frozenset[ProcessState]]] = {
    ProcessState.RUNNING: frozenset({ProcessState.LINGERING}),
    ProcessState.LINGERING: frozenset({ProcessState.CLOSED}),
    ProcessState.CLOSED: frozenset(),
}

ENVIRONMENT_MOVES: Final[dict[EnvironmentState, frozenset[EnvironmentState]]] = {
    EnvironmentState.STARTING: frozenset({EnvironmentState.RUNNING, EnvironmentState.STOPPING}),
    EnvironmentState.RUNNING: frozenset({EnvironmentState.RESETTING, EnvironmentState.STOPPING}),
    # A reset that could not make anything new leaves what there was.
    EnvironmentState.RESETTING: frozenset({EnvironmentState.RUNNING, EnvironmentState.STOPPING}),
    EnvironmentState.STOPPING: frozenset({EnvironmentState.GONE}),
    EnvironmentState.GONE: frozenset(),
}


class Machine(Generic[State]):
    """One object's state, moved only along its table."""

    __slots__ = ("_moves", "state")

    def __init__(self, moves: dict[State, frozenset[State]], state: State) -> None:
        self._moves = moves
        self.state = state

    def move(self, to: State) -> None:
        """Raises InternalError for a move that the table lacks."""
        if to not in self._moves[self.state]:
            raise InternalError(f"no move from {self.state} to {to}")
        self.state = to


def require_new(state: RuntimeState) -> None:
    """Let `initialize` pass.

    Raises:
        InvalidState: `already_initialized` or `shutting_down`.
    """
    if state in (RuntimeState.STOPPING, RuntimeState.STOPPED):
        raise InvalidState("the runtime is shutting down", "shutting_down")
    if state is not RuntimeState.NEW:
        raise InvalidState("initialize was called before; it is called once", "already_initialized")


def require_running(state: RuntimeState) -> None:
    """Let every call pass that needs the environment.

    Raises:
        InvalidState: `not_initialized` or `shutting_down`.
    """
    if state is RuntimeState.RUNNING:
        return
    if state in (RuntimeState.STOPPING, RuntimeState.STOPPED):
        raise InvalidState("the runtime is shutting down", "shutting_down")
    raise InvalidState("call initialize first", "not_initialized")


def require_usable(state: EnvironmentState, name: str) -> None:
    """Let every call pass that needs what is in an environment.

    Raises:
        InvalidState: `environment_busy`; `environment_stopped` where it does not come back.
    """
    if state in (EnvironmentState.STOPPING, EnvironmentState.GONE):
        raise InvalidState(f"environment {name!r} is {state.value}", "environment_stopped")
    if state is not EnvironmentState.RUNNING:
        raise InvalidState(f"environment {name!r} is {state.value}; try again", "environment_busy")
