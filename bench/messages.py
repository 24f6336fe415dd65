"""Requests as a supervisor of agent workers sends them."""

from __future__ import annotations

from typing import Any

import orjson


def exec_request(number: int) -> dict[str, Any]:
    """One exec of an agent worker: about 600 bytes as JSON."""
    return {
        "jsonrpc": "2.0",
        "id": number,
        "method": "exec",
        "params": {
            "cmd": [
                "/usr/local/bin/agent-worker",
                "--task",
                f"task-{number:08}",
                "--protocol",
                "acp",
                "--max-turns",
                "50",
            ],
            "env": {
                "AGENT_TASK_ID": f"task-{number:08}",
                "AGENT_MODEL": "a-model-with-a-long-name-20260101",
                "AGENT_WORKSPACE": f"/workspace/repositories/project-{number % 97}",
                "HTTPS_PROXY": "http://127.0.0.1:3128",
                "LANG": "C.UTF-8",
                "LOG_LEVEL": "info",
                "NO_COLOR": "1",
            },
            "working_dir": f"/workspace/repositories/project-{number % 97}",
            "on_disconnect": "hold",
            "key": f"task-{number:08}-attempt-1",
        },
    }


def exec_lines(count: int) -> list[bytes]:
    """So many requests as lines, without their newlines."""
    return [orjson.dumps(exec_request(number)) for number in range(count)]


def chunks(lines: list[bytes], size: int) -> list[bytes]:
    """The lines as reads of `size` bytes would bring them."""
    stream = b"".join(line + b"\n" for line in lines)
    return [stream[at : at + size] for at in range(0, len(stream), size)]
