"""`fastclaw serve`: the runtime as a supervisor starts it. Its log is one line per event on stderr, as text or JSON; a
traceback is one line too."""

import gc
import logging
import os
import sys
from typing import Any, Literal

import click
import orjson

from fastclaw import limits
from fastclaw.linux import own_process
from fastclaw.options import RUNTIMES
from fastclaw.runtimes.host import EnvironmentHost
from fastclaw.server import stdio
from fastclaw.server.harness import RuntimeHarness

Format = Literal["text", "json"]


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", " | ")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(_printable(entry), default=str).decode()


def _printable(entry: dict[str, Any]) -> dict[str, Any]:
    """Bytes of a path that are no UTF-8 are lone surrogates in a str, for which JSON has no form."""
    return {
        name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
        for name, value in entry.items()
    }


def configure_log(form: Format, level: str = "INFO") -> None:
    """Send all logging of this process to stderr.

    Parameters:
        form: `text` for people, `json` for machines.
        level: a level's name, as in logging.
    """
    handler = logging.StreamHandler(sys.stderr)
    text = _TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(_JsonFormatter() if form == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


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
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
@click.option(
    "--control",
    metavar="[PATH]",
    is_flag=False,
    flag_value="",
    help="Let `fastclaw top` and `stats` look, by a socket of mode 0600.",
)
def serve(runtime: str, log_format: Literal["text", "json"], log_level: str, control: str | None) -> None:
    """Serve a runtime over stdin and stdout, as JSON-RPC, until shutdown or end of input."""
    configure_log(log_format, log_level)
    stdio.require_standard_descriptors()
    collect_less_often()
    place = os.path.abspath(control) if control else control is not None
    own_process.run(RuntimeHarness(EnvironmentHost(runtime, place)).serve())
