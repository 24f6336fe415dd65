"""From a request to what a lane is asked for: ids, and what the environment has where the request says nothing.

Decides; starts nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastclaw import stages
from fastclaw.errors import InvalidParams
from fastclaw.params import check_offered, directory_of, trace_of
from fastclaw.processes.lane import StartSpec

if TYPE_CHECKING:
    from fastclaw.options import Options
    from fastclaw.processes.lane import Lane
    from fastclaw.runtime import ExecRequest, RunRequest
    from fastclaw.stages import Flight, Ledger, TraceContext


class StartSpecs:
    """Makes the specs of one environment's starts.

    Parameters:
        prefix: what all ids of its processes begin with, up to the hyphen.
        environment: variables that every process gets before those of its request.
        working_dir: the directory of requests that name none; None leaves it to the lane.
        base_dir: where that is, for a request that names a relative one.
        ledger: where flights count; None: nowhere.
        name: of the environment.
    """

    def __init__(
        self,
        options: Options,
        prefix: str,
        environment: dict[str, str],
        *,
        working_dir: str | None,
        base_dir: str,
        ledger: Ledger | None,
        name: str,
    ) -> None:
        self.prefix, self.environment = prefix, environment
        self._options = options
        self._working_dir, self._base_dir = working_dir, base_dir
        self._ledger, self._name = ledger, name
        self._count = 0

    def __repr__(self) -> str:
        return f"<StartSpecs {self.prefix} {self._count}>"

    def make(
        self,
        lane: Lane,
        request: ExecRequest | RunRequest,
        *,
        stdin: bool,
        tty: tuple[int, int] | None,
        holds_stdin: bool = False,
        is_helper: bool = False,
    ) -> StartSpec:
        """What the lane is asked for; the request was checked.

        Parameters:
            is_helper: it is one of our own, whose flight counts nowhere.

        Raises:
            InvalidParams: `unsupported`, the lane does not offer it; there is no such template; or its trace is none.
        """
        if request.user is not None or request.limits or request.template is not None or tty is not None:
            check_offered(request, lane.name, lane.capabilities, self._options.templates, lane.refused)
        trace = trace_of(request)
        self._count += 1
        process_id = f"{self.prefix}-{self._count}"
        flight = stages.unseen() if is_helper else self._flight(process_id, lane, request.cmd[0], trace)
        return StartSpec(
            process_id=process_id,
            cmd=request.cmd,
            base_env=self.environment,
            env=request.env if flight.trace is None else _traced(request.env, flight.trace),
            working_dir=directory_of(request.working_dir, self._working_dir, self._base_dir),
            user=self._options.user if request.user is None else request.user,
            stdin=stdin,
            limits=request.limits,
            tty=tty,
            template=request.template,
            merge_stderr=request.merge_stderr,
            holds_stdin=holds_stdin,
            orphans=request.orphans,
            flight=flight,
        )

    def _flight(self, process_id: str, lane: Lane, program: str, trace: TraceContext | None) -> Flight:
        """Of the call that is served."""
        flight = stages.present()
        flight.subject, flight.environment = process_id, self._name
        flight.lane, flight.ledger, flight.trace = lane.name, self._ledger, trace
        if self._ledger is not None:
            self._ledger.began(flight, program)
        return flight

    def number(self, process_id: str) -> int:
        """The place of a process in the order of starts.

        Raises:
            InvalidParams: it is none of these.
        """
        prefix, _, digits = process_id.partition("-")
        is_number = digits.isascii() and digits.isdecimal()
        if prefix != self.prefix or not is_number or len(digits) > len(str(self._count)):
            raise InvalidParams("$.after is no process of this runtime; take the `next` of an answer", path="$.after")
        return int(digits)


def _traced(env: dict[str, str], trace: TraceContext) -> dict[str, str]:
    """With the variables of a trace, unless the request has one of them itself: half of each would be of no trace."""
    variables = trace.variables()
    return env if variables.keys() & env.keys() else {**env, **variables}
