"""What holds for every test: which event loops it runs on, and that it leaves nothing behind.

Async tests run on uvloop, which is the production one; those of `BOTH_LOOPS` on asyncio's too. Before and after each
test descriptors, children, tasks, socket directories and complaints of the loop are compared.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from tests.balance import children, open_descriptors
from tests.waiting import InstantLoop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

pytest_plugins = ["pytester", "tests.engine_fixtures", "tests.docker_fixtures", "tests.folder_seconds", "tests.workers"]

_SETTLE_S = 2.0
"""How long what was ended may take to be gone: the kernel closes and reaps a moment after the event."""

_complaints: list[str] = []
_runtime_dir = _bytecode_dir = Path("/nonexistent")


def pytest_configure(config: pytest.Config) -> None:
    """Socket directories of this run go to a place of their own, so that a leftover is known to be ours.

    So does the bytecode of what is started here by the thousand: it is compiled once, whatever PYTHONDONTWRITEBYTECODE
    says.
    """
    global _runtime_dir, _bytecode_dir
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(signum) == signal.SIG_IGN:  # in the background; our children would heed none of ours
            signal.signal(signum, signal.SIG_DFL)
    _runtime_dir = Path(tempfile.mkdtemp(prefix="fct", dir="/tmp"))
    os.environ["XDG_RUNTIME_DIR"] = str(_runtime_dir)
    _bytecode_dir = Path(tempfile.mkdtemp(prefix="fcb", dir="/tmp"))
    _bytecode_dir.chmod(0o755)  # for other users' processes
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(_bytecode_dir)
    uvloop.new_event_loop().close()  # libuv opens a pipe for signals with its first loop and keeps it


def pytest_unconfigure(config: pytest.Config) -> None:
    """Take it away again."""
    for directory in (_runtime_dir, _bytecode_dir):
        shutil.rmtree(directory, ignore_errors=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where CI promises everything that the tests need, a test that was skipped proves nothing and is a failure."""
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") == "true" and reporter is not None and reporter.stats.get("skipped"):
        reporter.write_line("CI: a skipped test is a failure", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _observed(loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
    loop.set_exception_handler(_complain)
    return loop


def _complain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    _complaints.append(f"{context.get('message')}: {error!r}")
    loop.default_exception_handler(context)


def _stock_loop() -> asyncio.AbstractEventLoop:
    return _observed(asyncio.SelectorEventLoop())


def _uvloop() -> asyncio.AbstractEventLoop:
    return _observed(uvloop.new_event_loop())


BOTH_LOOPS = (
    "tests/linux/",
    "tests/processes/test_endpoint",
    "tests/processes/test_relay",
    "tests/processes/test_listeners",
    "tests/server/test_stdio",
    "tests/engine/rest_lane/test_stdin",
    "tests/engine/rest_lane/test_http_client",
)
"""Where descriptors are watched, the loop itself matters: these tests run on asyncio's and on uvloop."""

NO_CLOCK = tuple(
    f"tests/processes/test_{name}.py" for name in ("pool", "process", "run", "start_steps", "starts", "table")
)
"""Tests of timing alone: they run on a loop whose clock jumps from timer to timer."""


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loops of one test: both where the loop itself matters."""
    if item.nodeid.startswith(BOTH_LOOPS):
        return {"asyncio": _stock_loop, "uvloop": _uvloop}
    if item.nodeid.startswith(NO_CLOCK):
        return {"instant": lambda: _observed(InstantLoop())}
    return {"uvloop": _uvloop}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Async tests have their time limit on the loop, too: uvloop hands what the alarm of pytest-timeout raises to its
    exception handler, and waits on.
    """
    default = float(config.getini("timeout"))
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            mark = item.get_closest_marker("timeout")
            item.obj = _limited(item.obj, default if mark is None else float(mark.args[0]))


def _limited(test: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    @functools.wraps(test)
    async def limited(*args: Any, **kwargs: Any) -> None:
        has_clock = not isinstance(asyncio.get_running_loop(), InstantLoop)
        async with asyncio.timeout(seconds if has_clock and seconds else None):
            await test(*args, **kwargs)

    return limited


def _socket_directories() -> set[str]:
    return {path.name for path in _runtime_dir.glob("fastclaw-*")}


def _possessions() -> dict[str, set[str]]:
    return {
        "descriptors": {f"{fd} {target}" for fd, target in open_descriptors().items()},
        "children": {str(pid) for pid in children()},
        "socket directories": _socket_directories(),
    }


def _difference(before: dict[str, set[str]], after: dict[str, set[str]]) -> str:
    lines = []
    for name, old in before.items():
        lines += [f"  {name}: left behind {entry}" for entry in sorted(after[name] - old)]
        lines += [f"  {name}: missing {entry}" for entry in sorted(old - after[name])]
    return "\n".join(lines)


def _settled_difference(before: dict[str, set[str]]) -> str:
    deadline = time.monotonic() + _SETTLE_S
    while (difference := _difference(before, _possessions())) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)  # /proc sends no event
    return difference


@pytest.fixture(autouse=True)
def _balanced_books(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves something behind in this process or made the loop complain."""
    _complaints.clear()
    before = _possessions()
    yield
    difference = _settled_difference(before)
    complaints = "\n".join(f"  loop: {complaint}" for complaint in _complaints)
    if difference or complaints:
        pytest.fail(f"{request.node.nodeid} left things behind:\n{difference}\n{complaints}", pytrace=False)


@pytest.fixture(autouse=True)
def _balanced_loop(request: pytest.FixtureRequest, _balanced_books: None) -> None:
    """For async tests: `_balanced_tasks` comes before all fixtures of the test, and ends after them."""
    if inspect.iscoroutinefunction(getattr(request.node, "obj", None)):
        request.getfixturevalue("_balanced_tasks")


@pytest.fixture
async def _balanced_tasks() -> AsyncIterator[None]:
    own = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)  # what is due now
    left = [task for task in asyncio.all_tasks() - own - {asyncio.current_task()} if not task.done()]
    assert not left, f"tasks left behind: {left}"
