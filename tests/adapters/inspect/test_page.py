"""What the page about inspect-ai shows runs as it says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from inspect_ai import eval

from fastclaw.adapters.inspect_config import config_of
from tests.adapters.image import USER
from tests.adapters.inspect.model import model_saying

if TYPE_CHECKING:
    import pytest

PAGE = Path(__file__).parents[3] / "docs" / "adapters" / "inspect.md"
TASK, CONFIG = (part.removeprefix("python\n") for part in PAGE.read_text().split("```")[3:6:2])


def test_the_task_runs_with_the_containerfile_beside_it(
    containerfiles: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(Path(containerfiles[USER]).parent, tmp_path, dirs_exist_ok=True)
    (tmp_path / "notes.py").write_text(TASK)
    model = model_saying([("bash", {"command": "cat notes.txt"}), "It says hello."])
    monkeypatch.chdir(tmp_path)
    (log,) = eval("notes.py", model=model, log_dir="logs", display="none")
    assert log.status == "success", log.error
    assert log.eval.sandbox is not None
    assert log.eval.sandbox.config == "Containerfile"
    assert log.results is not None
    assert log.results.scores[0].metrics["accuracy"].value == 1.0


def test_the_configuration_is_one() -> None:
    made: dict[str, object] = {}
    exec(CONFIG, made)
    config = config_of(made["sandbox"].config)  # type: ignore[attr-defined]  # what the page makes
    assert config.build == str(Path("env").absolute())
    assert config.model_extra is not None
    assert config.model_extra.keys() == {"user", "memory", "network", "env"}
