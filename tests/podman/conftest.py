"""What the engine tests import by this name; the fixtures are those of tests/engine_fixtures.py and, for the REST
lane, of rest_rig.py."""

from tests.engine_fixtures import EngineService, unusable
from tests.podman.rest_rig import any_lane, lane, rest_engine

__all__ = ["EngineService", "any_lane", "lane", "rest_engine", "unusable"]
