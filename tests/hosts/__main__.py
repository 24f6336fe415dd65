"""Puts fastclaw through the README, the conformance suite and the acceptance tests on hosts of several kinds.

    python -m tests.hosts [--short] [--part PART] [--json FILE] [HOST ...]
    python -m tests.hosts --speed

Prints a table; exit code 1 where anything is broken. What a host needs that is not here is a row that says so. Roots
and wheels are made once and kept in ~/.cache/fastclaw/hosts, with the logs of the last run. Needs root.
"""

import argparse
import signal
import sys
from pathlib import Path
from typing import NoReturn

from tests.hosts import speed
from tests.hosts.bounds import UnavailableError
from tests.hosts.hosts import CACHE, HOSTS, compare_users, put_through
from tests.hosts.report import is_ok, to_json, to_text
from tests.hosts.steps import PARTS

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _interrupt(*_: object) -> NoReturn:
    """Once: what follows is the end, which leaves nothing only where it is not interrupted."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    print("\ntest-hosts: interrupted; ending what runs and removing what it wrote", flush=True)
    raise KeyboardInterrupt


def main() -> int:
    """Put those that are named through it, or all."""
    names = "\n".join(f"  {name:15} {host.what}" for name, host in HOSTS.items())
    parser = argparse.ArgumentParser(
        prog="test-hosts",
        description="Put fastclaw through the README, the conformance suite and the acceptance tests on other hosts.",
        epilog=f"hosts:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--short", action="store_true", help="without the acceptance tests")
    parser.add_argument("--part", action="append", choices=PARTS[1:], help="the README and this only; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there too, as JSON")
    parser.add_argument("--speed", action="store_true", help="only: rootless Podman 5 beside root's, on one machine")
    parser.add_argument("hosts", nargs="*", metavar="HOST", help="all where none is named")
    asked = parser.parse_args()
    if unknown := set(asked.hosts) - set(HOSTS):
        parser.error(f"there is no host {', '.join(sorted(unknown))}; there are: {' '.join(HOSTS)}")
    for signum in SIGNALS:
        signal.signal(signum, _interrupt)
    rows = []
    try:
        if asked.speed:
            return _compare_users()
        for name in asked.hosts or HOSTS:
            rows += put_through(name, asked.part or (PARTS[:-1] if asked.short else PARTS))
    except KeyboardInterrupt:
        print("test-hosts: nothing is left behind")
        return 130
    print(f"\n{to_text(rows)}\n\nlogs: {CACHE / 'logs'}")
    if asked.json:
        asked.json.write_text(to_json(rows) + "\n")
    return int(not is_ok(rows))


def _compare_users() -> int:
    try:
        found = compare_users()
    except UnavailableError as reason:
        print(f"test-hosts: not offered: {reason}")
        return 1
    print(f"\n{speed.to_text(found)}")
    return int(not all(figure.is_met for figure in found))


if __name__ == "__main__":
    sys.exit(main())
