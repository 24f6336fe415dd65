"""fastclaw/x/y.py is tested by tests/x/test_y.py, and where that is long by tests/x/test_y_SUBJECT.py: both ways."""

from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent

WITHOUT_TESTS = {
    "__main__.py": "two lines, run by every test that starts `python -m fastclaw`",
    "adapters/*.py": "each run with its tool, by tests/adapters",
    "adapters/mcp/*.py": "run with the SDK's own client, by tests/adapters/mcp",
    "*_limits.py": "bounds; tests/test_limits.py tests all",
    "files.py": "shapes and an interface without behaviour; tested with processes/file_calls.py",
    "wire.py": "a table; tested with cli/schema.py, which shows it, and by all tests of methods",
    "options.py": "shapes without behaviour; what is refused is tested with runtimes/read_options.py",
    "processes/lane.py": "an interface without behaviour; what it demands is tested with each lane",
    "runtimes/environment.py": "nobody but its host has one; tested with runtimes/host.py",
    "images.py": "shapes and an interface without behaviour; tested with engine/builds.py",
    "engine/builds.py": "tested by engine/test_image_builds.py, with engine/news.py",
    "engine/news.py": "see there",
    "sandbox/progress_bar.py": "tested with the images of sandbox/host.py",
    "sandbox/facts.py": "tested with sandbox/sandbox.py, as are `raised`, `streamed_run` and `transfer`",
    "sandbox/raised.py": "see there",
    "sandbox/streamed_run.py": "see there",
    "sandbox/transfer.py": "see there",
    "conformance/check_*.py": "its checks run over three runtimes in test_runner.py, and broken ones in test_broken.py",
}
"""Modules (patterns) without a test file of their own, with the reason."""

SUBJECTS = {
    "acceptance/test_*.py": "the whole, as a supervisor and a hostile process see it",
    "adapters/*/test_*.py": "an adapter and its tool, by `make test-adapters`",
    "benchmarks/test_*.py": "what the benches keep of a run, compare, and judge",
    "client/test_real_runtimes.py": "processes and runs through all layers, over real runtimes",
    "conformance/test_docker.py": "promises over a real Docker",
    "conformance/test_broken*.py": "all checks, against a runtime that breaks promises",
    "hosts/test_hosts.py": "the rig of `make test-hosts`",
    "network/bridge/test_walls.py": "the firewall's rules, against real packets",
    "engine/clones/test_full.py": "clones on a disk that is full",
    "engine/clones/test_kills.py": "clones whose fastclaw, cloner, or both are killed",
    "engine/clones/test_sameness.py": "a clone beside the engine's own container, from outside and from inside",
    "engine/test_image_builds.py": "builds and archives, on a real engine",
    "engine/test_sandbox.py": "what a container is, seen from inside",
    "processes/test_lingering.py": "bounds on what has ended, over real pumps",
    "processes/test_run.py": "one call through all modules of the folder",
    "server/test_cancel.py": "one call through all layers",
    "processes/test_start_steps.py": "a start that fails at each of its steps",
    "spawner/test_files_*.py": "the C program as a file helper",
    "spawner/test_fuzz.py": "the C program",
    "spawner/test_gvisor.py": "the C program, as it is in gVisor",
    "spawner/test_interleavings.py": "the C program: two things at once",
    "spawner/test_runs.py": "the C program: runs",
    "spawner/test_spawner_binary.py": "the C program, frame by frame",
    "spawner/test_spawner_users.py": "the C program: users",
    "spawner/test_tty.py": "the C program: terminals",
    "test_build_spawner.py": "scripts/build_spawner.py",
    "test_code_blocks.py": "README.md and docs/: their code",
    "test_docs.py": "docs/",
    "test_exports.py": "what `import fastclaw` brings in",
    "test_folder_seconds.py": "tests/folder_seconds.py",
    "test_workers.py": "tests/workers.py",
    "test_mirror.py": "the tree",
    "test_packaging.py": "Makefile",
    "test_readme.py": "README.md",
    "test_share.py": "share/: the units",
    "test_wheels.py": "the wheels: what is in them, and what an install of one needs",
}
"""Test files (patterns) of no single module, with what they are about."""


def below(folder: str, pattern: str) -> set[Path]:
    """Files of a folder, relative to it."""
    return {path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob(pattern)}


MODULES = {path for path in below("fastclaw", "*.py") if path.name != "__init__.py"}
TEST_FILES = below("tests", "test_*.py")


def listed(path: Path, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns is for this file, of this very folder."""
    return any(path.match(pattern) and len(path.parts) == pattern.count("/") + 1 for pattern in patterns)


def modules_of(file: Path) -> set[Path]:
    """The modules that a test file may be about: `test_a_b.py` is about `a_b.py`, or about a subject `b` of `a.py`."""
    words = file.stem.split("_")[1:]
    return {file.with_name("_".join(words[:length]) + ".py") for length in range(1, len(words) + 1)} & MODULES


def test_each_module_has_either_its_test_file_or_a_reason() -> None:
    bare = {module for module in MODULES if module.with_name(f"test_{module.name}") not in TEST_FILES}
    assert bare == {module for module in MODULES if listed(module, WITHOUT_TESTS)}


def test_each_test_file_belongs_either_to_a_module_or_to_a_subject() -> None:
    homeless = {file for file in TEST_FILES if not modules_of(file)}
    assert homeless == {file for file in TEST_FILES if listed(file, SUBJECTS)}


def test_each_entry_is_for_something() -> None:
    assert [entry for entry in WITHOUT_TESTS if not any(listed(path, [entry]) for path in MODULES)] == []
    assert [entry for entry in SUBJECTS if not any(listed(path, [entry]) for path in TEST_FILES)] == []
