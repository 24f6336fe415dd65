"""Small scripted runtimes: real child processes that say what a test needs."""

import sys

_PRELUDE = """
import json, os, sys, time
def requests():
    for line in sys.stdin:
        yield json.loads(line)
def say(**message):
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\\n")
    sys.stdout.flush()
def answer(request, result):
    say(id=request["id"], result=result)
"""

POLITE = """
for request in requests():
    if request["method"] == "initialize":
        answer(request, {"server": {"name": "polite", "version": "1"}, "capabilities": ["wait"],
                         "env": {"NAMESPACE": request["params"]["namespace"]}})
    elif request["method"] == "shutdown":
        answer(request, {})
        break
    else:
        answer(request, request.get("params"))
"""


def fake(script: str) -> list[str]:
    """argv of a runtime that runs `script`; it has `requests()`, `answer(request, result)` and `say(**message)`."""
    return [sys.executable, "-S", "-c", _PRELUDE + script]
