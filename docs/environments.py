import asyncio
import sys

from fastclaw import FastclawError
from fastclaw.client import RuntimeClient

SERVE = [sys.executable, "-m", "fastclaw", "serve"]
NO_MAIN = {"environment": False}


async def sample(runtime: RuntimeClient, number: int) -> str:
    async with await runtime.environment_start(token=f"sample-{number}", env={"SAMPLE": str(number)}) as box:
        done = await box.run(["sh", "-c", 'echo "sample $SAMPLE"'])
        await box.reset()
        again = await box.run(["sh", "-c", "exit 0"])
        return f"{done.stdout.decode().strip()}: {done.exit_code}, {again.exit_code}"


async def main() -> None:
    async with RuntimeClient.spawn(SERVE, namespace="samples", options=NO_MAIN) as runtime:
        for line in await asyncio.gather(*(sample(runtime, number) for number in range(3))):
            print(line)
        print(len(await runtime.environment_list()), "left")


try:
    asyncio.run(main())
except FastclawError as error:
    sys.exit(f"samples: {error}")
