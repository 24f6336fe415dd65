"""Which tests may run at the same time."""

from pathlib import Path

from tests.workers import TOGETHER, group_of

ROOT = Path(__file__).parent.parent
USERS = ("tests.acceptance.egress_rig", "blackholed", "FirewalledBridge(")
"""Words in files whose tests change the routes or the firewall of this machine."""


def test_a_file_is_a_group_and_those_that_share_something_are_one() -> None:
    assert group_of("tests/test_errors.py::test_x[a::b]") == "tests/test_errors.py"
    assert group_of("tests/network/bridge/test_walls.py::test_x") == "routes"
    assert group_of("tests/acceptance/test_egress_escapes.py::test_x") == "routes"


def test_who_changes_routes_is_in_their_group() -> None:
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if "adapters" not in path.parts]
    users = [path for path in files if path != Path(__file__) and any(word in path.read_text() for word in USERS)]
    assert len(users) > len(TOGETHER)
    assert {group_of(str(path.relative_to(ROOT))) for path in users} == {"routes"}
