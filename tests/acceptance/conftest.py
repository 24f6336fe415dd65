"""What several files of acceptance tests share: directories of a runtime, a world outside, an image with Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.acceptance.egress_rig import Origin, an_origin
from tests.acceptance.homes import Home
from tests.acceptance.python_image import import_python_image

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.engine_fixtures import EngineService


@pytest.fixture
def home(short_dir: Path) -> Home:
    """Of one test."""
    return Home(short_dir)


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    """Outside, for the tests of a file."""
    with an_origin() as one:
        yield one


@pytest.fixture(scope="module")
def image(engine_service: EngineService) -> str:
    """The name of one whose containers have Python."""
    return import_python_image(engine_service.url)
