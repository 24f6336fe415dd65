"""What `import fastclaw` offers, and what it must not bring in."""

import subprocess
import sys

import pytest

import fastclaw

FOREIGN = ("podman", "requests", "uvloop", "click", "rich", "fastclaw.cli", "fastclaw.engine", "fastclaw.runtimes")


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import fastclaw",
        "import fastclaw.client",
        "import fastclaw.server.harness",
        "from fastclaw import Runtime, RuntimeHarness",
    ],
)
def test_the_sdk_brings_in_nothing_foreign(statement: str) -> None:
    assert loaded_by(statement).isdisjoint(FOREIGN)


def test_importing_the_package_alone_loads_no_other_module_of_it() -> None:
    assert {name for name in loaded_by("import fastclaw") if name.startswith("fastclaw")} == {"fastclaw"}


@pytest.mark.parametrize("name", fastclaw.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(fastclaw, name) is not None
    assert name in dir(fastclaw)


def test_all_errors_and_value_types_are_public() -> None:
    from fastclaw import errors, runtime

    for module in (errors, runtime):
        classes = {name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
        public = {name for name in classes if isinstance(getattr(module, name), type)}
        assert public <= set(fastclaw.__all__)


def test_no_other_name_is_there() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = fastclaw.nonsense
