"""`fastclaw bench`: measure any runtime extension under load."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import signal
import sys
import time
from contextlib import suppress
from importlib import import_module
from typing import IO, TYPE_CHECKING, Any, TypeVar, get_args

import click

from fastclaw import bench_limits
from fastclaw.bench.job import Job, LoadName, Plan
from fastclaw.cli.commands import INTERRUPTED, setting, size
from fastclaw.cli.numbers import NumberRange
from fastclaw.linux import own_process

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from fastclaw.bench.driver import Driver
    from fastclaw.bench.recorder import Recorder
    from fastclaw.bench.report import Report

SERVE = [sys.executable, "-m", "fastclaw", "serve", "--log-level", "warning"]
_LEAST_COLUMNS = 40
_TICK_S = 0.2
_LINE_S = 10
"""Between two lines where stderr is no terminal."""

_BAR = 20
Found = TypeVar("Found")
_AT_ONCE = click.IntRange(1, bench_limits.BENCH_AT_ONCE)
_SECONDS = NumberRange(0, bench_limits.BENCH_MAX_DURATION_S, min_open=True)


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--load",
    type=click.Choice(get_args(LoadName)),
    default="exec",
    show_default=True,
    help="What an operation is: exec and wait; run; a ping to a process that is held; start an environment, its first "
    "byte, stop it; write and read a file.",
)
@click.option("--concurrency", "-c", type=_AT_ONCE, metavar="N", help="Closed loop: N at once.  [default: 1]")
@click.option(
    "--rate",
    "-r",
    type=NumberRange(0, bench_limits.BENCH_RATE, min_open=True),
    metavar="N",
    help="Open loop: N a second at random, each timed from when it was meant to begin.",
)
@click.option("--burst", "-b", type=_AT_ONCE, metavar="N", help="N at once, and again when all have ended.")
@click.option(
    "--duration",
    "-d",
    type=_SECONDS,
    metavar="SECONDS",
    help=f"Begin operations for so long.  [default: {bench_limits.BENCH_DURATION_S}, unless --count]",
)
@click.option("--count", "-n", type=click.IntRange(1), metavar="N", help="Begin so many.")
@click.option(
    "--warm-up",
    type=NumberRange(0, bench_limits.BENCH_MAX_DURATION_S),
    default=0.0,
    metavar="SECONDS",
    help="Before that, the same uncounted.",
)
@click.option(
    "--deadline",
    type=NumberRange(0, bench_limits.BENCH_MAX_OPERATION_MS / 1000, min_open=True),
    default=bench_limits.BENCH_OPERATION_MS / 1000,
    show_default=True,
    metavar="SECONDS",
    help="A call that is not answered within this has failed.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of what is random.")
@click.option("--cmd", default="true", show_default=True, help="The command of exec and run, in a shell's words.")
@click.option("--live", type=_AT_ONCE, metavar="N", help="Processes that hold holds.  [default: as --concurrency]")
@click.option("--size", "file_size", callback=size, default="4k", show_default=True, help="Of a file of files.")
@click.option(
    "--option", "-o", "extra", multiple=True, metavar="NAME=JSON", help="Option of initialize; may be repeated."
)
@click.option("--cliff", is_flag=True, help="Raise --rate or --concurrency until it does not hold, and say what bound.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
@click.option(
    "--hlog",
    type=click.File("w", lazy=False),
    metavar="FILE",
    help="Write a log of histograms, format 1.3, which HdrHistogram's tools read.",
)
@click.option("--plot", type=click.File("wb", lazy=False), metavar="FILE.png|FILE.html", help="Draw what was found.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def bench(
    context: click.Context,
    load: LoadName,
    concurrency: int | None,
    rate: float | None,
    burst: int | None,
    duration: float | None,
    count: int | None,
    warm_up: float,
    deadline: float,
    seed: int,
    cmd: str,
    live: int | None,
    file_size: int,
    extra: tuple[str, ...],
    cliff: bool,
    as_json: bool,
    hlog: IO[str] | None,
    plot: IO[bytes] | None,
    command: tuple[str, ...],
) -> None:
    """Measure the runtime that COMMAND serves on its stdin and stdout; `fastclaw serve` where none is named."""
    if sum(how is not None for how in (concurrency, rate, burst)) > 1:
        raise click.UsageError("--concurrency, --rate and --burst are three loops: name one", context)
    if load == "hold" and live is not None and live < (concurrency or 1):
        raise click.UsageError(f"--live {live} are too few for --concurrency {concurrency}", context)
    others = {"--burst": burst, "--count": count, "--hlog": hlog, "--plot": plot}
    if cliff and any(value is not None for value in others.values()):
        raise click.UsageError(f"--cliff goes with none of {', '.join(others)}", context)
    usual_s = bench_limits.BENCH_STEP_S if cliff else bench_limits.BENCH_DURATION_S
    plan = Plan(
        concurrency=concurrency or 1,
        rate=rate,
        burst=burst,
        duration_s=usual_s if duration is None and count is None else duration,
        count=count,
        warm_up_s=warm_up,
        seed=seed,
    )
    job = Job(
        command=list(command) or SERVE,
        load=load,
        plan=plan,
        options=dict(map(setting, extra)),
        cmd=_words(cmd),
        live=live or plan.concurrency,
        size=_bounded(file_size),
        deadline_ms=max(1, round(deadline * 1000)),
        keeps_histograms=hlog is not None or plot is not None,
    )
    if max(plan.concurrency, burst or 1) > job.most_at_once:
        raise click.UsageError(f"of files of this size no more than {job.most_at_once} at once", context)
    _must_be_drawable(plot)
    _must_be_installed("hdrh")
    own_process.raise_file_limit()
    is_good = _climb(job, as_json=as_json) if cliff else _benchmark(job, hlog, plot, as_json=as_json)
    sys.exit(0 if is_good else 1)


def _words(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: {error}", param_hint="--cmd") from None
    if not words:
        raise click.BadParameter("it has no word", param_hint="--cmd")
    return words


def _bounded(size_bytes: int) -> int:
    if not 1 <= size_bytes <= bench_limits.BENCH_FILE_BYTES:
        raise click.BadParameter(f"from 1 to {bench_limits.BENCH_FILE_BYTES} bytes", param_hint="--size")
    return size_bytes


def _must_be_drawable(plot: IO[bytes] | None) -> None:
    if plot is None:
        return
    if not plot.name.endswith((".png", ".html")):
        raise click.BadParameter(f"{plot.name!r} ends neither with .png nor with .html", param_hint="--plot")
    _must_be_installed("matplotlib")


def _must_be_installed(module: str) -> None:
    """Rather said now than after minutes of measuring."""
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        said = f"{error.name} is not installed; run: pip install 'PATH[bench]', with PATH of fastclaw's checkout"
        raise click.ClickException(said) from error


# --- What is measured, and how it is told: each whether all is well ---


def _benchmark(job: Job, hlog: IO[str] | None, plot: IO[bytes] | None, *, as_json: bool) -> bool:
    from fastclaw.bench.benchmark import benchmark
    from fastclaw.bench.report import to_json, to_text

    report, recorder = _run(lambda on_begin: benchmark(job, on_begin))
    click.echo(to_json(report).decode() if as_json else to_text(report, _columns()), nl=False)
    if hlog is not None:
        _log(recorder, hlog)
    if plot is not None:
        _draw(report, recorder, plot)
    if report.interrupted:
        sys.exit(INTERRUPTED)
    return report.ok


def _climb(job: Job, *, as_json: bool) -> bool:
    from fastclaw.bench.cliff import to_json, to_text
    from fastclaw.bench.climb import climb

    cliff = _run(lambda on_begin: climb(job, on_begin))
    click.echo(to_json(cliff).decode() if as_json else to_text(cliff, _columns()), nl=False)
    if cliff.interrupted:
        sys.exit(INTERRUPTED)
    return cliff.ok


def _columns() -> int:
    return max(_LEAST_COLUMNS, shutil.get_terminal_size().columns)


def _log(recorder: Recorder, file: IO[str]) -> None:
    from fastclaw.bench.hlog import lines

    started_at = time.time() - (time.monotonic_ns() - recorder.first_ns) / 1e9
    file.writelines(f"{line}\n" for line in lines(recorder, started_at))


def _draw(report: Report, recorder: Recorder, file: IO[bytes]) -> None:
    from fastclaw.bench.plot import write_html, write_png

    write = write_png if file.name.endswith(".png") else write_html
    write(report, recorder, file)


# --- While it is measured ---


def _run(measure: Callable[[Callable[[Driver], None]], Coroutine[Any, Any, Found]]) -> Found:
    from fastclaw.bench.session import NotMeasured

    try:
        return own_process.run(_watched(measure))
    except NotMeasured as why:
        raise click.ClickException(str(why)) from why
    except asyncio.CancelledError:  # before there was anything to report
        sys.exit(INTERRUPTED)


async def _watched(measure: Callable[[Callable[[Driver], None]], Coroutine[Any, Any, Found]]) -> Found:
    """Measure, with a line on stderr, until it is done or a signal comes: the first one leads to a report."""
    progress = Progress()
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def interrupt() -> None:
        if not progress.interrupt():
            task.cancel()

    for signum in own_process.heeded([signal.SIGINT, signal.SIGTERM]):
        loop.add_signal_handler(signum, interrupt)
    showing = loop.create_task(progress.show())
    try:
        return await measure(progress.begin)
    finally:
        showing.cancel()
        with suppress(asyncio.CancelledError):
            await showing


class Progress:
    """How far a measurement is: one line on a terminal, elsewhere a line now and then."""

    def __init__(self) -> None:
        self._driver: Driver | None = None
        self._is_terminal = sys.stderr.isatty()

    def begin(self, driver: Driver) -> None:
        """Another measurement begins."""
        self._driver = driver

    def interrupt(self) -> bool:
        """End what is being measured, so that there is a report; False where that was said before, or there is none."""
        if self._driver is None or self._driver.interrupted:
            return False
        self._driver.interrupt()
        return True

    async def show(self) -> None:
        """For as long as it is not cancelled."""
        width = shutil.get_terminal_size().columns - 1
        try:
            while True:
                await asyncio.sleep(_TICK_S if self._is_terminal else _LINE_S)
                text = "starting" if self._driver is None else line(self._driver)
                if self._is_terminal:
                    click.echo(f"\r{text[:width]:<{width}}", err=True, nl=False)
                elif self._driver is not None:
                    click.echo(text, err=True)
        finally:
            if self._is_terminal:
                click.echo(f"\r{'':<{width}}\r", err=True, nl=False)


def line(driver: Driver) -> str:
    """What there is to say of a measurement that goes on."""
    recorder, plan, elapsed_s = driver.recorder, driver.plan, driver.elapsed_s
    if elapsed_s < 0:
        return f"warm-up, {-elapsed_s:.1f} s more: {recorder.warm_up} right, {recorder.warm_up_failed} failed"
    shares = [elapsed_s / plan.duration_s] if plan.duration_s else []
    shares += [recorder.ended / plan.count] if plan.count else []
    done = min(1.0, max(shares))
    bar = "#" * round(_BAR * done) + "-" * (_BAR - round(_BAR * done))
    level = f"{plan.rate:g}/s" if plan.rate is not None else f"{plan.burst or plan.concurrency} at once"
    return f"[{bar}] {done:4.0%} {recorder.right} right, {recorder.failed.total()} failed, {level}"
