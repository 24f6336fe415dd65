"""A small runtime, in plain Python, that breaks promises on purpose: the checker must say which."""

import json
import sys
from typing import Any


def say(message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def result(request_id: Any, value: Any) -> None:
    # Broken: string ids come back in upper case.
    say({"jsonrpc": "2.0", "id": request_id.upper() if isinstance(request_id, str) else request_id, "result": value})


def error(request_id: Any, code: int, message: str, **data: Any) -> None:
    say({"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": message, "data": data}})


def serve(request: Any) -> bool:
    """Answer one request; whether to go on."""
    # Broken: a notification is answered, under a null id.
    request_id, method = request.get("id"), request.get("method")
    if method == "initialize":
        # Broken: a second one is welcome too.
        result(request_id, {"server": {"name": "broken", "version": "0"}, "capabilities": ["key"], "env": {}})
    elif method == "health":
        result(request_id, {"status": "fine"})
    elif method == "exec":
        # Broken: the sockets are not there, and every process is the same one.
        result(request_id, {"process_id": "1", "stdio_addr": "/no/such/socket", "stderr_addr": "/no/such/socket2"})
    elif method == "kill":
        result(request_id, {})
    elif method == "shutdown":
        result(request_id, {})
        return False
    else:
        error(request_id, -32601, "no such method")
    return True


def main() -> int:
    for line in filter(str.strip, sys.stdin):
        try:
            request = json.loads(line)
        except ValueError:
            # Broken: this is no JSON-RPC.
            print("what?", flush=True)  # noqa: T201 - the break itself
            continue
        if not serve(request):
            # Broken: not 0.
            return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
