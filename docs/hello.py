import asyncio
import sys

from fastclaw.client import RuntimeClient

SERVE = [sys.executable, "-m", "fastclaw", "serve"]
WORKER = ["sh", "-c", 'read -r name; echo "hello $name"; exit 3']


async def main() -> None:
    async with RuntimeClient.spawn(SERVE, namespace="hello") as runtime:
        for name in (b"world\n", b"agent\n"):
            worker = await runtime.exec(WORKER)
            output, _ = await worker.communicate(name)
            record = await worker.wait()
            print(output.decode().strip(), "- exit code", record.exit_code)


asyncio.run(main())
