import asyncio
import sys

from fastclaw import FastclawError
from fastclaw.client import RuntimeClient

SERVE = [sys.executable, "-m", "fastclaw", "serve"]
WORKER = ["sh", "-c", 'read -r name; echo "hello $name"; exit 3']


async def main() -> None:
    async with RuntimeClient.spawn(SERVE, namespace="hello") as runtime:
        for name in (b"world\n", b"agent\n"):
            done = await runtime.run(WORKER, input=name)
            print(done.stdout.decode().strip(), "- exit code", done.exit_code)


try:
    asyncio.run(main())
except FastclawError as error:
    sys.exit(f"hello: {error}")
