"""Serves any `Runtime` over this process's stdin and stdout.

Owns the order of things from the first read to the last answer: reading, backpressure, signals, shutdown. What a line
means is `dispatch`'s; what a runtime does is the runtime's.
"""

import asyncio
import logging
import signal
from collections.abc import Callable

from fastclaw import limits
from fastclaw.lifecycle import RuntimeState
from fastclaw.linux.own_process import await_children, heeded
from fastclaw.runtime import InitializeParams, Runtime
from fastclaw.server.dispatch import Dispatcher
from fastclaw.server.stdio import ByteSink, ByteSource, StdioClaim, require_standard_descriptors

logger = logging.getLogger(__name__)

_SHUTDOWN_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class RuntimeHarness:
    """Serves a runtime until `shutdown`, EOF on stdin or a signal; then everything is torn down.

    Parameters:
        runtime: the harness starts and stops it; or what gives one for the params of `initialize`.
    """

    def __init__(self, runtime: Runtime | Callable[[InitializeParams], Runtime]) -> None:
        self._choose = (lambda _: runtime) if isinstance(runtime, Runtime) else runtime
        self._session: _Session | None = None

    def __repr__(self) -> str:
        return f"<RuntimeHarness {self._session or 'not serving'}>"

    def run(self) -> None:
        """Serve on an event loop of its own: the blocking form of `serve`.

        Raises:
            IoError, RuntimeSdkError: as `serve`.
        """
        require_standard_descriptors()
        asyncio.run(self.serve())

    async def serve(self) -> None:
        """Serve until the end.

        Raises:
            IoError: stdin or stdout is closed or claimed already.
            RuntimeSdkError: the runtime could not be torn down; what is left is in the log.
        """
        await_children()
        claim = StdioClaim()
        try:
            self._session = _Session(self._choose, claim)
            await self._session.run()
        finally:
            self._session = None
            claim.close()


class _Session:
    """One connection with one supervisor."""

    def __init__(self, choose: Callable[[InitializeParams], Runtime], claim: StdioClaim) -> None:
        self._sink = ByteSink(claim.output_fd, self._on_pressure, lambda _: self._begin_shutdown())
        self._dispatcher = Dispatcher(choose, self._sink.write, self._shut_down)
        self._source = ByteSource(claim.input_fd, self._dispatcher.receive, self._begin_shutdown)
        self._loop = asyncio.get_running_loop()
        self._shutdown_asked: asyncio.Event = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        calls = self._dispatcher.calls
        return f"<Session {calls.machine.state.value}: {calls.runtime}>"

    async def run(self) -> None:
        signals = heeded(_SHUTDOWN_SIGNALS)
        for signum in signals:
            self._loop.add_signal_handler(signum, self._on_signal)
        try:
            self._source.resume()
            await self._shutdown_asked.wait()
            await self._shut_down()
        finally:
            self._source.close()
            await self._flush()
            for signum in signals:
                self._loop.remove_signal_handler(signum)

    def _on_pressure(self, is_high: bool) -> None:
        """A reader that is slower than we are: read no more requests until it has caught up."""
        self._dispatcher.hold(is_high)
        if is_high:
            self._source.pause()
        else:
            self._source.resume()

    def _on_signal(self) -> None:
        if self._shutdown_asked.is_set():
            self._hasten()
        self._begin_shutdown()

    def _hasten(self) -> None:
        runtime = self._dispatcher.calls.runtime
        if runtime is not None:
            runtime.hasten()

    def _begin_shutdown(self) -> None:
        self._shutdown_asked.set()

    async def _shut_down(self) -> None:
        """Bring the runtime down, once, however often this is called."""
        self._begin_shutdown()
        if self._stopping is None:
            # Now, not in the task: what was read together with the shutdown comes after it.
            self._dispatcher.calls.machine.move(RuntimeState.STOPPING)
            self._stopping = self._loop.create_task(self._stop())
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        calls = self._dispatcher.calls
        timeout_ms = limits.SHUTDOWN_TIMEOUT_MS if calls.runtime is None else calls.runtime.stop_timeout_ms
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._dispatcher.cancel_yielding()
                if calls.runtime is not None:
                    await calls.runtime.stop()
        except TimeoutError:
            logger.error("the runtime did not stop within %d ms; leaving it", timeout_ms)
        finally:
            calls.machine.move(RuntimeState.STOPPED)

    async def _flush(self) -> None:
        """The last answers leave, if they are read in time."""
        try:
            async with asyncio.timeout(limits.FINAL_FLUSH_MS / 1000):
                await self._dispatcher.wait_idle()
                await self._sink.drain()
        except TimeoutError:
            logger.warning("the supervisor does not read; %d bytes of answers are dropped", self._sink.pending_bytes)
        finally:
            await self._dispatcher.aclose()
            self._sink.close()
