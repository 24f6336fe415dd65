"""Entry point of `fastclaw`: answers what needs nothing loaded, and hands over to click for the rest.

Imports nothing of ours, so that `fastclaw --version` and `fastclaw --help` cost hardly more than Python itself.
"""

import os
import sys

from fastclaw import __version__

COMMANDS = {
    "bench": "Measure any runtime under load: latency, rate, what breaks first.",
    "check": "Check which promises of the contract any runtime keeps.",
    "completion": "Print a shell's script that completes commands and options.",
    "demo": "Start many workers at once, stream through them, and time it.",
    "doctor": "Check this host: engine, known bugs, limits, what fits.",
    "engine": "A private engine that stays, and the image that it needs.",
    "man": "Print the manual page.",
    "mcp": "Serve a sandbox as tools to an MCP client.",
    "run": "Run one command in a fresh sandbox.",
    "trace": "Show where the time of a journal's calls went.",
    "schema": "Show the methods and options, or a JSON Schema of them.",
    "serve": "Serve a runtime over stdin and stdout, for a supervisor.",
    "stats": "Show what the environments of running runtimes take.",
    "top": "Look at the processes of a running runtime.",
}
"""Each is the attribute of that name of the module of that name; `fastclaw NAME --help` says more."""

SUMMARY = "Start and hold agent worker processes in a sandbox."

OPTIONS = {
    "--version": "Show the version and exit.",
    "--debug": "Show the traceback of an error.",
    "-h, --help": "Show this message and exit.",
}

VERSION = f"fastclaw, version {__version__}"


def missing_text(module: str | None) -> str:
    """Where something that fastclaw needs is not installed with it."""
    return f"{module} is not installed; install fastclaw with all that it needs: make install, or pip install fastclaw"


def help_text() -> str:
    """The one that click shows too."""
    parts = (
        "Usage: fastclaw [OPTIONS] COMMAND [ARGS]...",
        f"  {SUMMARY}",
        f"Options:\n{_table(OPTIONS)}",
        f"Commands:\n{_table(COMMANDS)}",
    )
    return "\n\n".join(parts)


def _table(rows: dict[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in rows.items())


_ANSWERS = {"--version": lambda: VERSION, "--help": help_text, "-h": help_text}


def main() -> None:
    """Run the command that `sys.argv` names."""
    if sys.getfilesystemencoding() != "utf-8" and "utf8" not in sys._xoptions:
        # The locale would have arguments and paths be in another encoding, and the protocol has one only.
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    answer = _ANSWERS.get(sys.argv[1]) if len(sys.argv) == 2 else None
    if answer is not None:
        _show(answer())
        return
    try:
        from fastclaw.cli.commands import run_command
    except ModuleNotFoundError as error:
        sys.exit(f"Error: {missing_text(error.name)}")
    run_command()


def _show(text: str) -> None:
    try:
        print(text, flush=True)  # noqa: T201 - click is not loaded
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # nobody reads it any more
            os.write(2, f"Error: {error.strerror}\n".encode())
        os._exit(1)  # Python itself would try to write it once more
