"""What there is to call, as data and as text: all that `fastclaw --version` and `fastclaw --help` need.

Imports nothing, so that these two cost hardly more than Python itself.
"""

from fastclaw import __version__

COMMANDS = {
    "check": "Check which promises of the contract any runtime keeps.",
    "demo": "Start many workers at once, stream through them, show what it took.",
    "doctor": "Check this host: engine, known bugs, limits, what fits.",
    "engine": "A private engine that stays, and the image that it needs.",
    "run": "Run one command in a fresh sandbox.",
    "serve": "Serve a runtime over stdin and stdout, for a supervisor.",
}
"""Each is the attribute of that name of the module of that name; `fastclaw NAME --help` says more."""

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
        "  Start and hold agent worker processes in a sandbox.",
        f"Options:\n{_table(OPTIONS)}",
        f"Commands:\n{_table(COMMANDS)}",
    )
    return "\n\n".join(parts)


def _table(rows: dict[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in rows.items())
