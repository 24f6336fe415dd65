"""Every module has the test file that a reader would look for: fastclaw/x/y.py is tested by tests/x/test_y.py."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

CHECKS = "its checks run over three runtimes in test_run.py, and over ones that break promises in test_broken.py"
EXCEPTIONS = {
    "__main__.py": "two lines, run by every test that starts `python -m fastclaw`",
    "answer_limits.py": "more bounds; tests/test_limits.py tests all",
    "network_limits.py": "more bounds; tests/test_limits.py tests all",
    "options.py": "shapes without behaviour; what is refused is tested with runtimes/read_options.py",
    "processes/lane.py": "an interface without behaviour; what it demands is tested with each lane",
    "conformance/check_cancel.py": CHECKS,
    "conformance/check_clients.py": CHECKS,
    "conformance/check_errors.py": CHECKS,
    "conformance/check_exec.py": CHECKS,
    "conformance/check_kill.py": CHECKS,
    "conformance/check_lifecycle.py": CHECKS,
    "conformance/check_records.py": CHECKS,
    "conformance/check_run.py": CHECKS,
    "conformance/check_run_ends.py": CHECKS,
    "conformance/check_run_limits.py": CHECKS,
    "conformance/check_sockets.py": CHECKS,
    "conformance/check_streams.py": CHECKS,
    "conformance/check_terminals.py": CHECKS,
    "conformance/check_wire.py": CHECKS,
}
"""Modules without a test file of their own, with the reason. A name here that needs no exception fails too."""


def modules() -> list[str]:
    """Paths below the package. An `__init__` that only carries a docstring or names has nothing to test."""
    package = ROOT / "fastclaw"
    return sorted(str(path.relative_to(package)) for path in package.rglob("*.py") if path.name != "__init__.py")


def mirror(module: str) -> Path:
    path = Path(module)
    return ROOT / "tests" / path.parent / f"test_{path.name}"


@pytest.mark.parametrize("module", [module for module in modules() if module not in EXCEPTIONS])
def test_module_has_its_test_file(module: str) -> None:
    assert mirror(module).is_file()


@pytest.mark.parametrize("module", EXCEPTIONS)
def test_exception_is_needed(module: str) -> None:
    assert module in modules()
    assert not mirror(module).exists()
