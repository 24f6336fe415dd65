"""The spawner is the init of any image: one with a single static program in it, and one that says who and where."""

from __future__ import annotations

import io
import sys
import tarfile
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from podman import PodmanClient

from fastclaw.client import RuntimeClient
from fastclaw.engine.base_image import CHANGES, busybox_archive, host_programs, programs_archive, static_busybox
from fastclaw.errors import ExecFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tests.engine_fixtures import EngineService

pytestmark = pytest.mark.timeout(120)

SERVE = [sys.executable, "-m", "fastclaw", "serve", "--runtime", "podman", "--log-level", "error"]


def imported(url: str, name: str, archive: bytes, changes: Sequence[str] = ()) -> str:
    """The name of an image with these files."""
    reference = f"localhost/fastclaw-test-{name}:1"
    with PodmanClient(base_url=url) as client:
        response = client.api.post(
            "/images/import",
            params={"reference": reference, "changes": [*changes]},
            data=archive,
            headers={"Content-Type": "application/x-tar"},
        )
        response.raise_for_status()
    return reference


def scratch() -> bytes:
    """No shell, no /etc, no /tmp: one program."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(static_busybox(), "busybox")
    return buffer.getvalue()


@asynccontextmanager
async def running(service: EngineService, image: str) -> AsyncIterator[RuntimeClient]:
    options = {"url": service.url, "image": image, "lane": "spawn"}
    async with RuntimeClient.spawn(SERVE, namespace="images", options=options) as client:
        yield client


async def said(client: RuntimeClient, *cmd: str, **request: object) -> str:
    async with await client.exec([*cmd], stdin=False, **request) as process:  # type: ignore[arg-type]  # shorthand
        out, _ = await process.communicate()
        return out.decode()


async def test_an_image_from_scratch(engine_service: EngineService) -> None:
    image = imported(engine_service.url, "scratch", scratch())
    async with running(engine_service, image) as client:
        assert await said(client, "/busybox", "echo", "hi") == "hi\n"
        assert await said(client, "/busybox", "id", "-u", user="1000") == "1000\n"
        assert await said(client, "/busybox", "pwd") == "/\n"
        with pytest.raises(ExecFailed) as raised:
            await client.exec(["sh"])
        assert raised.value.reason == "not_found"
        with pytest.raises(ExecFailed) as raised:
            await client.exec(["/busybox", "true"], user="root")
        assert raised.value.reason == "unknown_user"
        process = await client.exec(["/busybox", "sh", "-c", "/busybox setsid /busybox sleep 1000 & wait"])
        await process.kill(0)
        assert (await process.wait()).reason == "killed"


async def test_an_image_says_who_where_and_with_what(engine_service: EngineService) -> None:
    changes = ["USER 1000:7", "WORKDIR /var", "ENV FROM_IMAGE=yes", 'ENTRYPOINT ["/no/such/program"]']
    image = imported(engine_service.url, "configured", busybox_archive(static_busybox()), changes)
    async with running(engine_service, image) as client:
        assert await said(client, "sh", "-c", 'echo "$(id -u):$(id -g) $PWD $FROM_IMAGE"') == "1000:7 /var yes\n"
        assert await said(client, "id", "-u", user="0") == "0\n"
        assert await said(client, "pwd", working_dir="/tmp") == "/tmp\n"
        assert await said(client, "sh", "-c", "echo $FROM_IMAGE", env={"FROM_IMAGE": "no"}) == "no\n"


TOOLS = """
set -e
stat -c "%a %U" / /tmp /root
echo x > made; cat made; rm made
id -un; id -un nobody; echo $HOME
echo '#!/usr/bin/env sh' > /tmp/script; echo 'echo $0' >> /tmp/script; chmod +x /tmp/script; /tmp/script
seq 3 | sed s/2/two/ | grep -v 1 | awk '{print NR, $1}' | sort -r | head -n 1
mkdir /tmp/d; touch /tmp/d/f; tar cf - -C /tmp d | tar tf -; find /tmp/d -type f
test -e /bin/wget || echo no wget
"""
SAID = """755 root
1777 root
700 root
x
root
nobody
/root
/tmp/script
2 3
d/
d/f
/tmp/d/f
no wget
"""


@pytest.mark.parametrize("form", ["busybox", "programs"])
async def test_the_default_image_in_both_forms(engine_service: EngineService, form: str) -> None:
    archive = busybox_archive(static_busybox()) if form == "busybox" else programs_archive(host_programs())
    image = imported(engine_service.url, form, archive, CHANGES)
    async with running(engine_service, image) as client:
        done = await client.run(["sh", "-c", TOOLS])
        assert (done.exit_code, done.stdout, done.stderr) == (0, SAID.encode(), b"")
        done = await client.run(["sh", "-c", "id -u; echo x > /tmp/f && cat /tmp/f; ps >/dev/null"], user="nobody")
        assert (done.exit_code, done.stdout, done.stderr) == (0, b"65534\nx\n", b"")
