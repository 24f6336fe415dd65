"""Runtimes to be measured, and a benchmark of them in this process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastclaw.bench.benchmark import benchmark
from fastclaw.bench.job import Job, LoadName, Plan

if TYPE_CHECKING:
    from fastclaw.bench.driver import Driver
    from fastclaw.bench.report import Report

SERVE = [sys.executable, "-m", "fastclaw", "serve", "--log-level", "error", "--runtime"]
MEMORY = [*SERVE, "memory"]
LOCAL = [*SERVE, "local"]

IN_SH = r"""
while read -r line; do
    id=${line#*\"id\":}
    id=${id%%,*}
    result='{}'
    case $line in
    *initialize*) result='{"capabilities":["run"],"server":{"name":"sh"}}' ;;
    *'"run"'*) result='{"process_id":"1","state":"exited","exit_code":0,"signal":null,"reason":"exited"}' ;;
    esac
    printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$id" "$result"
    case $line in *shutdown*) exit 0 ;; esac
done
"""


def evil(how: str, *words: str) -> list[str]:
    """A runtime that breaks the protocol in this way."""
    return [sys.executable, "-I", str(Path(__file__).with_name("evil.py")), how, *words]


def job(command: list[str], load: LoadName = "run", plan: Plan | None = None, **more: Any) -> Job:
    """Of forty operations, four at once, unless it is said."""
    return Job(command=command, load=load, plan=plan or Plan(concurrency=4, count=40), **more)


def ignored(driver: Driver) -> None:
    """Of a measurement's beginning."""


async def report_of(one: Job) -> Report:
    """Measure."""
    report, _ = await benchmark(one, ignored)
    return report
