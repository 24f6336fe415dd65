"""A small runtime, in plain Python, that breaks promises on purpose: the checker must say which.

`broken_runtime.py` breaks the wire and has no sockets at all; `broken_runtime.py DIRECTORY` has sockets, in there,
and breaks what is promised of them, of records and of errors.
"""

import json
import socket
import sys
import threading
from pathlib import Path
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


class Careless:
    """Processes with sockets of which nothing is right."""

    def __init__(self, directory: Path) -> None:
        # Broken: anyone may come in.
        directory.chmod(0o755)
        self.directory = directory
        self.count = 0

    def serve(self, request: Any) -> bool:
        """Answer one request; whether to go on."""
        request_id, params = request.get("id"), request.get("params") or {}
        match request.get("method"):
            case "initialize":
                # Broken: there is no terminal at all.
                offered = ["wait", "tty"]
                result(request_id, {"server": {"name": "careless", "version": "0"}, "capabilities": offered})
            case "exec" if self.is_refused(params["cmd"]):
                # Broken, here and below: neither the crate's words nor any data.
                error(request_id, -32000, "no")
            case "exec":
                result(request_id, self.start())
            case "kill" if not str(params["process_id"]).isdecimal():
                error(request_id, -32002, "no")
            case "wait":
                # Broken: whatever it was, it went well.
                result(request_id, {"state": "exited", "exit_code": 0, "signal": None, "reason": "exited"})
            case "no_such_method":
                error(request_id, -32601, "no")
            case method:
                result(request_id, {})
                return bool(method != "shutdown")
        return True

    def is_refused(self, cmd: Any) -> bool:
        return not isinstance(cmd, list) or cmd == ["/no/such/program"]

    def start(self) -> dict[str, str]:
        self.count += 1
        stdio, stderr = (self.listen(f"{self.count}.{name}") for name in ("stdio", "stderr"))
        return {"process_id": str(self.count), "stdio_addr": stdio, "stderr_addr": stderr}

    def listen(self, name: str) -> str:
        path = str(self.directory / name)
        server = socket.socket(socket.AF_UNIX)
        server.bind(path)
        server.listen()
        threading.Thread(target=self.accept, args=(server,), daemon=True).start()
        return path

    def accept(self, server: socket.socket) -> None:
        first, _ = server.accept()
        threading.Thread(target=self.shout, args=(first,), daemon=True).start()
        while True:
            # Broken: whoever comes second is welcome.
            second, _ = server.accept()
            second.sendall(b"welcome")

    def shout(self, client: socket.socket) -> None:
        while data := client.recv(4096):
            # Broken: not what was sent.
            client.sendall(data.upper())


def main_careless(directory: Path) -> int:
    careless = Careless(directory)
    for line in filter(str.strip, sys.stdin):
        try:
            request = json.loads(line)
        except ValueError:
            error(None, -32700, "no")
            continue
        if not careless.serve(request):
            break
    return 0


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
    sys.exit(main_careless(Path(sys.argv[1])) if sys.argv[1:] else main())
