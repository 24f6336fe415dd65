import asyncio
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from fastclaw import FastclawError
from fastclaw.client import Progress, RuntimeClient

SERVE = [sys.executable, "-m", "fastclaw", "serve", "--runtime", "podman"]
CONTAINERFILE = """
FROM {base}
ARG WORD=nothing
RUN echo "$WORD" > /said
"""


def write(directory: str, base: str | None) -> None:
    Path(directory, "Containerfile").write_text(CONTAINERFILE.format(base=base))


def show(told: Progress) -> None:
    for line in told.text.splitlines():
        if line.startswith("STEP"):
            print(line.split("/")[0])


async def main() -> None:
    async with RuntimeClient.spawn(SERVE, namespace="images") as runtime:
        (main,) = await runtime.environment_list()
        with TemporaryDirectory() as directory:
            write(directory, main.image)
            built = await runtime.image_build(directory, args={"WORD": "hello"}, on_progress=show)
        async with await runtime.environment_start(image=built.image) as box:
            print(await box.read_file("/said"))


try:
    asyncio.run(main())
except FastclawError as error:
    sys.exit(f"images: {error}")
