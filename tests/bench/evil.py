"""A runtime extension, of the standard library alone, that keeps to the protocol or breaks it.

`python evil.py HOW`; test_benchmark.py has what is to be said of each.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

HOW = sys.argv[1]
RECORD = {"process_id": "p", "state": "exited", "exit_code": 0, "signal": None, "reason": "exited"}
DIES_AFTER = 20
TOGETHER = 4
LATE_S = 0.3
SLOW_S = 0.003
COUNT = itertools.count(1)


def say(message: Any) -> None:
    """A line."""
    sys.stdout.write((message if isinstance(message, str) else json.dumps(message)) + "\n")
    sys.stdout.flush()


def answer(request_id: Any, result: Any) -> None:
    """What was asked for."""
    say({"jsonrpc": "2.0", "id": request_id, "result": result})


def fail(request_id: Any, error: Any) -> None:
    """An error."""
    say({"jsonrpc": "2.0", "id": request_id, "error": error})


def overloaded(reason: str) -> dict[str, Any]:
    """The error of a runtime with too much to do."""
    return {"code": -32000, "message": f"exec failed: {reason}", "data": {"reason": reason}}


WAITING: list[Any] = []


def run(request_id: Any) -> None:
    """Answer a run, well or otherwise."""
    number = next(COUNT)
    if HOW == "dies" and number > DIES_AFTER:
        sys.exit(7)
    if HOW == "never":
        return
    if HOW == "late":
        time.sleep(LATE_S)
    if HOW == "slow":
        time.sleep(SLOW_S)
    if HOW == "garbage":
        say("starting a command...")
    if HOW == "unknown-ids":
        answer(10**9, RECORD)
        answer("one", RECORD)
    if HOW == "talks":
        say({"jsonrpc": "2.0", "method": "log", "params": {}})
        say([1, 2])
    if HOW == "errors":
        return fail(request_id, overloaded("overloaded"))
    if HOW == "new-reasons":
        return fail(request_id, overloaded(f"reason-{number}"))
    if HOW == "bare-errors":
        return fail(request_id, "no")
    if HOW == "backwards":
        WAITING.append(request_id)
        if len(WAITING) == TOGETHER:
            while WAITING:
                answer(WAITING.pop(), RECORD)
        return None
    results: dict[str, Any] = {
        "lists": [],
        "no-record": {},
        "text-code": {**RECORD, "exit_code": "0"},
        "true-code": {**RECORD, "exit_code": False},
        "fails": {**RECORD, "exit_code": 3},
        "signals": {**RECORD, "exit_code": None, "signal": 9, "reason": "signaled"},
        "kills": {**RECORD, "reason": "killed"},
    }
    answer(request_id, results.get(HOW, RECORD))
    if HOW == "twice":
        answer(request_id, RECORD)
    return None


def main() -> None:
    """Serve."""
    if HOW == "stays":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if HOW == "dies-at-once":
        sys.exit(3)
    while HOW != "deaf" or next(COUNT) == 1:
        line = sys.stdin.readline()
        if not line:
            break
        request = json.loads(line)
        method, request_id = request["method"], request["id"]
        if method == "run":
            run(request_id)
        elif method == "initialize":
            if HOW == "refuses":
                fail(request_id, overloaded("image_not_found"))
                continue
            if HOW == "leaves":
                subprocess.Popen(["sh", "-c", f"sleep 300; : {sys.argv[2]}"], start_new_session=True)
            answer(request_id, "welcome" if HOW == "odd-welcome" else {"capabilities": ["run", 7]})
        else:
            answer(request_id, {})
            if method == "shutdown" and HOW != "stays":
                os._exit(4 if HOW == "ends-with-4" else 0)
    while HOW in ("stays", "deaf"):
        signal.pause()


if __name__ == "__main__":
    main()
