"""Entry point of `fastclaw`: answers what needs nothing loaded, and hands over to click for the rest."""

import os
import sys

from fastclaw.cli.help import VERSION, help_text, missing_text

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
