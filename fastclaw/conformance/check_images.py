"""Checks of images: what is built, fetched and loaded, how it is told, and what is left of a build taken back.

An image is known by a variable that its processes have: nothing is asked of what is in it but the vocabulary.
"""

import io
import json
import tarfile
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from fastclaw.conformance.check_environments import START_MS, environment
from fastclaw.conformance.rig import Rig, Session, none_bears, seen
from fastclaw.conformance.runner import proves
from fastclaw.conformance.wire import (
    CANCELLED,
    IO_ERROR,
    START_FAILED,
    NotOffered,
    data_of,
    expect,
    is_notice,
    refused,
)

NO_IMAGE = "localhost/fastclaw-check/no-such-image:latest"
VARIABLE = "CHECK_IMAGE"
WORD = "told-by-a-step"


def base_of(session: Session) -> str:
    """What the run's environments are made of.

    Raises:
        NotOffered: they name none.
    """
    image = session.welcome.get("image")
    if not isinstance(image, str):
        raise NotOffered("its environments name no image to build from")
    return image


@contextmanager
def context(*lines: str) -> Iterator[str]:
    """A directory with such a Containerfile."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "Containerfile").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        yield directory


@contextmanager
def archive(data: bytes) -> Iterator[str]:
    """A file with this in it."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        yield file.name


def a_tag() -> str:
    """One that no image has."""
    return f"localhost/fastclaw-check/{uuid.uuid4().hex[:12]}:1"


async def called(session: Session, method: str, **params: Any) -> dict[str, Any]:
    """The answer to a call that may take long."""
    return await session.answer(session.post(method, params), START_MS)


async def done(session: Session, method: str, **params: Any) -> dict[str, Any]:
    """The result of one that must succeed."""
    answer = await called(session, method, **params)
    expect(isinstance(answer.get("result"), dict), f"{method} answered {answer.get('error', answer)}")
    result: dict[str, Any] = answer["result"]
    return result


@proves("IMG-BUILD")
async def _build(rig: Rig, session: Session) -> None:
    base, token, tag = base_of(session), uuid.uuid4().hex, a_tag()
    with context(f"FROM {base}", "ARG GIVEN", f"ENV {VARIABLE}=$GIVEN") as directory:
        unnamed = await done(session, "image_build", directory=directory, args={"GIVEN": token})
        named = await done(session, "image_build", directory=directory, args={"GIVEN": token}, tag=tag)
    expect(all(isinstance(one.get("id"), str) for one in (unnamed, named)), f"the builds answered {unnamed}, {named}")
    for image in (unnamed.get("image"), named.get("image"), tag):
        async with environment(rig, session, image=image) as info:
            out, _ = await session.outputs(rig.words.printenv(VARIABLE), environment=info["environment"])
            expect(out.decode().strip() == token, f"a variable of the image is {out!r} in an environment of {image}")


@proves("IMG-FAILS")
async def _fails(rig: Rig, session: Session) -> None:
    with context(f"FROM {base_of(session)}", "COPY no-such-file /") as directory:
        error = refused(await called(session, "image_build", directory=directory), START_FAILED, "build_failed")
        expect("\n" not in str(error.get("message")), f"the message is {error.get('message')!r}")
        output = data_of(error).get("output")
        expect(isinstance(output, str) and "no-such-file" in output, f"data.output is {output!r}")
    refused(await called(session, "image_build", directory=directory), IO_ERROR, "not_found")


@proves("IMG-PULL")
async def _pull(rig: Rig, session: Session) -> None:
    base = base_of(session)
    pulled = await done(session, "image_pull", image=base)
    expect(isinstance(pulled.get("id"), str) and pulled.get("image") == base, f"image_pull answered {pulled}")
    refused(await called(session, "image_pull", image=NO_IMAGE), START_FAILED, "image_not_found")


@proves("IMG-LOAD")
async def _load(rig: Rig, session: Session) -> None:
    tag = a_tag()
    with archive(docker_archive(tag)) as path:
        loaded = await done(session, "image_load", archive=path)
        expect(loaded.get("images") == [tag], f"an archive of {tag} gave {loaded}")
    with archive(b"no archive") as path:
        refused(await called(session, "image_load", archive=path), IO_ERROR, "bad_archive")
    await done(session, "image_pull", image=tag)


def docker_archive(tag: str) -> bytes:
    """An image with one empty layer, as `docker save` writes it."""
    layer = _tar({})
    digest = f"sha256:{sha256(layer).hexdigest()}"
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [digest]}}
    manifest = [{"Config": "config.json", "RepoTags": [tag], "Layers": ["layer.tar"]}]
    files = {"config.json": json.dumps(config).encode(), "manifest.json": json.dumps(manifest).encode()}
    return _tar({**files, "layer.tar": layer})


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@proves("IMG-PROGRESS")
async def _progress(rig: Rig, session: Session) -> None:
    base = base_of(session)
    with context(f"FROM {base}", f"RUN echo {WORD}; : {uuid.uuid4().hex}") as directory:
        for asks in (True, False):
            params = {"directory": directory, "no_cache": True, **({"progress": True} if asks else {})}
            request_id = session.post("image_build", params)
            came = []
            while True:
                message = await session.take(lambda _: True, START_MS, "a notification or the answer")
                if not is_notice(message):
                    break
                came.append(message["params"])
            expect("result" in message, f"the build answered {message}")
            expect(all(told.get("id") == request_id for told in came), f"not of request {request_id}: {came}")
            lines = "".join(str(told.get("text", "")) for told in came).splitlines()
            expect(asks or not came, f"told without having been asked: {came}")
            expect(not asks or WORD in lines, f"what a step says is not told: {lines}")


@proves("IMG-CANCEL")
async def _cancel(rig: Rig, session: Session) -> None:
    session.needs("cancel")
    token, tag = uuid.uuid4().hex, a_tag()
    with context(f"FROM {base_of(session)}", f"RUN sleep 300; : {token}") as directory:
        building = session.post("image_build", {"directory": directory, "tag": tag})
        await seen(token, within_ms=START_MS)
        await session.result("cancel", {"id": building})
        refused(await session.answer(building), CANCELLED)
    none_bears(token)
    refused(await called(session, "image_pull", image=tag), START_FAILED, "image_not_found")
