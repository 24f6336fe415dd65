"""`fastclaw serve`: the runtime as a supervisor starts it."""

import functools
import gc
from typing import Literal

import click

from fastclaw import limits
from fastclaw.cli import log
from fastclaw.linux import loop
from fastclaw.options import RUNTIMES
from fastclaw.runtimes.choose import choose_runtime
from fastclaw.server import stdio
from fastclaw.server.harness import RuntimeHarness


def collect_less_often() -> None:
    """What is loaded by now stays; and a request makes a hundred objects that live as long as its process.

    With Python's own thresholds a collector that finds nothing takes a tenth of the time of an exec, and stops
    everything for tens of milliseconds where thousands of processes are held.
    """
    gc.freeze()
    gc.set_threshold(*limits.GC_THRESHOLDS)


@click.command()
@click.option("--runtime", type=click.Choice(["auto", *RUNTIMES]), default="auto", show_default=True)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
def serve(runtime: str, log_format: Literal["text", "json"], log_level: str) -> None:
    """Serve a runtime over stdin and stdout, as JSON-RPC, until shutdown or end of input."""
    log.configure(log_format, log_level)
    stdio.require_standard_descriptors()
    collect_less_often()
    loop.run(RuntimeHarness(functools.partial(choose_runtime, default=runtime)).serve())
