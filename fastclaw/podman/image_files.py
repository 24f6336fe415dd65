"""Reads a few small files of an image, by way of a container that never runs.

Knows the engine's API for that. What the files mean is decided elsewhere.
"""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import msgspec

from fastclaw import limits
from fastclaw.podman.podman_client import Created, answer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from podman.api.client import APIClient

JSON = {"Content-Type": "application/json"}


def read_image_files(client: APIClient, spec: Mapping[str, Any], paths: Sequence[str]) -> list[str]:
    """Their texts, empty for what is not there or no file; links are followed inside the image.

    Parameters:
        spec: SpecGenerator JSON of a container of the image.
        paths: absolute.

    Raises:
        podman.errors.APIError: the engine refused.
    """
    container = answer(client.post("/containers/create", data=msgspec.json.encode(spec), headers=JSON), Created).id
    try:
        return [_read(client, container, path) for path in paths]
    finally:
        client.delete(f"/containers/{container}", params={"force": "true", "v": "true"}).raise_for_status()


def _read(client: APIClient, container: str, path: str) -> str:
    response = client.get(f"/containers/{container}/archive", params={"path": path}, stream=True)
    try:
        if response.status_code == 404:
            return ""
        response.raise_for_status()
        archive: bytes = response.raw.read(limits.SPAWN_FILE_BYTES)
    finally:
        response.close()
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        member = files.next()
    if member is None or not member.isfile():
        return ""
    return archive[member.offset_data :][: member.size].decode("utf-8", "replace")
