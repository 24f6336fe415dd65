"""The program nft(8): transactions go in, names of tables come out. Blocking, each call with a deadline.

Knows no rules (network/bridge/firewall.py) and whose they are.
"""

import subprocess

from fastclaw import network_limits
from fastclaw.errors import StartFailed
from fastclaw.network.bridge.firewall import parse_tables


def apply(program: str, text: str) -> None:
    """Carry out a transaction: all of it or nothing.

    Parameters:
        program: path of nft.
        text: in nft's language.

    Raises:
        StartFailed: `network_failed`, with what nft says.
    """
    _run([program, "-f", "-"], text)


def tables(program: str) -> list[str]:
    """Names of our tables in this network namespace.

    Raises:
        StartFailed: `network_failed`, with what nft says.
    """
    return parse_tables(_run([program, "list", "tables"], ""))


def _run(argv: list[str], text: str) -> str:
    try:
        done = subprocess.run(
            argv, input=text, capture_output=True, text=True, timeout=network_limits.NFT_MS / 1000, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise StartFailed(f"nft does not answer within {network_limits.NFT_MS} ms", "network_failed") from error
    except OSError as error:
        raise StartFailed(f"cannot run {argv[0]}: {error.strerror}", "network_failed") from error
    if done.returncode != 0:
        raise StartFailed(f"nft: {_first_line(done.stderr)}", "network_failed")
    return done.stdout


def _first_line(text: str) -> str:
    """nft says what is wrong, and below it where: `Error: Could not process rule: Operation not permitted`."""
    lines = text.strip().splitlines()
    return lines[0].removeprefix("Error: ") if lines else "it gives no reason"
