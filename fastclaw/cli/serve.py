"""`fastclaw serve`: the runtime as a supervisor starts it."""

from typing import Literal

import click

from fastclaw.harness import RuntimeHarness
from fastclaw.observe import log
from fastclaw.runtimes.auto import RUNTIMES, AutoRuntime
from fastclaw.transport import loop, stdio


@click.command()
@click.option("--runtime", type=click.Choice(["auto", *RUNTIMES]), default="auto", show_default=True)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
def serve(runtime: str, log_format: Literal["text", "json"], log_level: str) -> None:
    """Serve a runtime over stdin and stdout, as JSON-RPC, until shutdown or end of input."""
    log.configure(log_format, log_level)
    stdio.require_standard_descriptors()
    loop.run(RuntimeHarness(AutoRuntime(runtime)).serve())
