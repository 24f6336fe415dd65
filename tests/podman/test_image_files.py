"""Files of an image, read without running anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fastclaw.errors import StartFailed
from fastclaw.podman.api import EngineLifecycle
from fastclaw.podman.base_image import GROUP, PASSWD
from fastclaw.podman.container_spec import InitPlan, container_spec

if TYPE_CHECKING:
    from typing import Any

    from tests.podman.conftest import EngineService

pytestmark = [pytest.mark.podman, pytest.mark.timeout(60)]
NAMESPACE = {"io.fastclaw.namespace": "image-files"}


def spec(image: str) -> dict[str, Any]:
    return container_spec(image=image, name="image-files", namespace="image-files", owner="nobody", init=InitPlan())


async def test_files_are_read_and_what_is_none_is_empty(engine_service: EngineService) -> None:
    engine = EngineLifecycle(engine_service.url)
    try:
        texts = await engine.image_files(spec(engine_service.image), ["/etc/passwd", "/etc/group", "/etc", "/no/such"])
        assert texts == [PASSWD, GROUP, "", ""]
        with pytest.raises(StartFailed):
            await engine.image_files(spec("localhost/no-such-image"), ["/etc/passwd"])
        assert await engine.list_containers(NAMESPACE) == []
    finally:
        await engine.close()
