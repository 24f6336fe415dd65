"""Images of `plain_runtime.py`: variables that its processes have, under a name; and steps that run on this host."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.conformance.plain_process import Failed

if TYPE_CHECKING:
    from tests.conformance.plain_runtime import Plain


class Images:
    """Those of one runtime. `base` is there from the beginning."""

    base = "plain"

    def __init__(self, plain: Plain) -> None:
        self._plain = plain
        self._ids = itertools.count(1)
        self._known: dict[str, dict[str, str]] = {self.base: {}}
        self._left: list[asyncio.Future[asyncio.subprocess.Process]] = []  # one that nobody refers to is killed

    def env(self, image: str | None) -> dict[str, str]:
        """What processes have of an image."""
        return self._known.get(image or self.base, {})

    def pull(self, params: dict[str, Any]) -> dict[str, Any]:
        if params["image"] not in self._known and not self._plain.breaks("pulls-anything"):
            raise Failed(-32001, "start_failed", "image_not_found")
        return {"image": params["image"], "id": params["image"]}

    def load(self, params: dict[str, Any]) -> dict[str, Any]:
        try:
            with tarfile.open(params["archive"]) as archive:
                manifest = archive.extractfile("manifest.json")
                assert manifest is not None
                names = [name for image in json.load(manifest) for name in image["RepoTags"]]
        except tarfile.TarError as error:
            if self._plain.breaks("loads-anything"):
                return {"images": []}
            raise Failed(-32004, "io_error", "bad_archive") from error
        self._known |= {name: {} for name in names}
        return {"images": names}

    async def build(self, params: dict[str, Any], request_id: Any) -> dict[str, Any]:
        env: dict[str, str] = {}
        for number, line in enumerate(_lines(Path(params["directory"], "Containerfile"))):
            self._tell(params, request_id, f"STEP {number}: {line}\n")
            word, _, rest = line.partition(" ")
            if word == "ENV":
                name, _, value = rest.partition("=")
                env[name] = params.get("args", {}).get(value.removeprefix("$"), value)
            elif word == "RUN":
                self._tell(params, request_id, await self._run(rest))
            elif word == "COPY":
                output = {} if self._plain.breaks("fails-in-silence") else {"output": line}
                raise Failed(-32001, "start_failed", "build_failed", **output)
        image = params.get("tag") or f"built-{next(self._ids)}"
        self._known[image] = {} if self._plain.breaks("builds-nothing") else env
        return {"image": image, "id": image}

    async def _run(self, command: str) -> str:
        # Cancelled in the middle of its start, a process would be ended by asyncio, whatever is broken here.
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_shell(
                command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, process_group=0
            )
        )
        try:
            output, _ = await (await asyncio.shield(starting)).communicate()
        except asyncio.CancelledError:
            if self._plain.breaks("cancels-in-word"):
                self._left.append(starting)
            else:
                await _end(starting)
            raise
        return output.decode()

    async def end_steps(self) -> None:
        """End what a build has left."""
        for starting in self._left:
            await _end(starting)

    def _tell(self, params: dict[str, Any], request_id: Any, text: str) -> None:
        asks = params.get("progress", False) or self._plain.breaks("tells-everybody")
        if asks and not self._plain.breaks("tells-nobody"):
            self._plain.notify({"id": 0 if self._plain.breaks("tells-of-others") else request_id, "text": text})


async def _end(starting: asyncio.Future[asyncio.subprocess.Process]) -> None:
    process = await starting
    os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _lines(path: Path) -> list[str]:
    if not path.exists():
        raise Failed(-32004, "io_error", "not_found")
    return path.read_text().splitlines()
