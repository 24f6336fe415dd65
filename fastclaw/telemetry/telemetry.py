"""What a runtime tells of itself: histograms always, a journal, metrics and spans where options name them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fastclaw.errors import StartFailed
from fastclaw.latency import Latency
from fastclaw.stages import Ledgers
from fastclaw.telemetry.journal import Journal
from fastclaw.telemetry.metrics import OPTION, MetricsEndpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastclaw.options import HostOptions
    from fastclaw.stages import Ledger
    from fastclaw.telemetry.metrics import Counts
    from fastclaw.telemetry.traces import Traces


class Telemetry:
    """Where the flights of a runtime go.

    Parameters:
        counts: what there is now.
        on_trouble: told in one line what is wrong with it.

    Attributes:
        latency: how long they took.
        ledger: all of it as one.
    """

    def __init__(self, counts: Callable[[], Counts], on_trouble: Callable[[str], None]) -> None:
        self._counts, self._on_trouble = counts, on_trouble
        self.latency = Latency()
        self.ledger: Ledger = self.latency
        self._journal: Journal | None = None
        self._metrics: MetricsEndpoint | None = None
        self._traces: Traces | None = None
        self._opened = AsyncExitStack()

    def __repr__(self) -> str:
        opened = (self._journal or "no journal", self._metrics or "no metrics", self._traces or "no traces")
        return f"<Telemetry {', '.join(map(str, opened))}>"

    async def open(self, options: HostOptions) -> None:
        """Begin with what the options name. Where this fails, `aclose` follows.

        Raises:
            StartFailed, InvalidParams: it cannot be had.
        """
        if options.journal is not None:
            self._journal = Journal(options.journal, options.journal_max_bytes, self._on_trouble)
            self._opened.push_async_callback(self._journal.aclose)
        if options.traces is not None:
            self._traces = await asyncio.to_thread(self._open_traces, options.traces)
            self._opened.push_async_callback(self._traces.aclose)
        if more := [ledger for ledger in (self._journal, self._traces) if ledger is not None]:
            self.ledger = Ledgers(self.latency, *more)
        if options.metrics is not None:
            if find_spec("prometheus_client") is None:
                text = f"{OPTION}: prometheus-client is not installed; pip install 'fastclaw[metrics]'"
                raise StartFailed(text, "unsupported")
            self._metrics = await MetricsEndpoint.open(options.metrics, self._expose)
            self._opened.push_async_callback(self._metrics.aclose)

    def _open_traces(self, option: str) -> Traces:
        """By a thread: it takes half a second to load, and 20 MB, which nobody needs who is not asked."""
        try:
            from fastclaw.telemetry.traces import Traces
        except ModuleNotFoundError as error:
            text = f"options.traces: {error.name} is not installed; pip install 'fastclaw[otel]'"
            raise StartFailed(text, "unsupported") from error
        return Traces(option, self._counts().version, self._on_trouble)

    def _expose(self, accepted: str) -> tuple[bytes, str]:
        from fastclaw.telemetry.exposition import exposed  # 5 MB that nobody needs who is not asked

        return exposed(self.latency, self._counts(), accepted)

    def health(self) -> dict[str, Any]:
        """For `health.details`."""
        told: dict[str, Any] = {"latency": self.latency.summary()}
        if self._journal is not None:
            told["journal"] = self._journal.health()
        if self._metrics is not None:
            told["metrics"] = {"address": self._metrics.address}
        if self._traces is not None:
            told["traces"] = self._traces.health()
        return told

    async def aclose(self) -> None:
        """Write the rest, and listen no more. Idempotent."""
        self.ledger = self.latency
        self._journal = self._metrics = self._traces = None
        await self._opened.aclose()
