"""What the engine tests import by this name; the fixtures themselves are those of tests/engine_fixtures.py."""

from tests.engine_fixtures import EngineService, unusable

__all__ = ["EngineService", "unusable"]
