"""A supervisor with one process, which does what it is told by its stdin, so that a test can kill it. A program.

argv   the runtime, its options as JSON, a shell command; a file is being written to the workspace, where there is one
says   fastclaw's pid and the process's id, once that has said its own first line
then   for `end`: what `fastclaw` ended with, after an orderly shutdown;
       for `again`: "on", once a new process has started, then as for `end`
"""

import asyncio
import contextlib
import json
import sys

from fastclaw.client import RuntimeClient
from fastclaw.errors import ExecFailed, InvalidParams

AGAIN_S = 0.05
"""Between two tries to start a process while what it needs is being replaced."""


async def main(runtime: str, options: str, script: str) -> None:
    command = [sys.executable, "-m", "fastclaw", "serve", "--log-level", "error", "--runtime", runtime]
    async with RuntimeClient.spawn(command) as client:
        await client.initialize("ends", json.loads(options))
        process = await client.exec(["sh", "-c", script])
        await process.stdout_read()
        if "/w" in options:
            with contextlib.suppress(InvalidParams):  # on the REST lane files have no streams
                writer = await client.file_writer("/w/held")  # stays open as long as there is something by this name
                await writer.write(b"some")
        _say(client.pid, process.id)
        if await asyncio.to_thread(sys.stdin.readline) == "again\n":
            _say(await _echo(client))
    _say(client.exit_code)


async def _echo(client: RuntimeClient) -> str:
    while True:
        try:
            async with await client.exec(["echo", "on"]) as process:
                if out := (await process.communicate())[0]:
                    return out.decode().strip()
        except ExecFailed as error:
            if not error.retryable:
                raise
        await asyncio.sleep(AGAIN_S)


def _say(*words: object) -> None:
    sys.stdout.write(f"{' '.join(map(str, words))}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
