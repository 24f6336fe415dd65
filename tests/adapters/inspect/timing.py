"""How long an evaluation with 50 samples takes on fastclaw, and on inspect-ai's own `local`, which starts no sandboxes.

python -m tests.adapters.inspect.timing [SAMPLES]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import bash

from tests.adapters.image import USER, build_context
from tests.adapters.inspect.model import Say, model_saying

if TYPE_CHECKING:
    from collections.abc import Sequence

ROUNDS = 3
CALLS: Sequence[Say] = [("bash", {"command": "cat given.txt"}), "42"]
"""Of each sample, besides the file that it is given and the setup script."""


def main() -> None:
    """Print a line for each."""
    samples = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    with tempfile.TemporaryDirectory() as directory:
        context = build_context(Path(directory) / "image", USER)
        sandboxes: dict[str, Any] = {"local": "local", "fastclaw": ("fastclaw", str(context / "Containerfile"))}
        for sandbox in sandboxes.values():
            _seconds(sandbox, 1, directory)  # its imports, the image, the engine
        taken = [{name: _seconds(one, samples, directory) for name, one in sandboxes.items()} for _ in range(ROUNDS)]
    for name in sandboxes:
        each = [one[name] for one in taken]
        print(f"{name:8} {samples} samples: {statistics.median(each):5.1f} s (of {ROUNDS}; at best {min(each):.1f})")


def _seconds(sandbox: Any, samples: int, directory: str) -> float:
    dataset = [
        Sample("?", id=number, target="42", files={"given.txt": "given\n"}, setup="true") for number in range(samples)
    ]
    task = Task(dataset=dataset, solver=[use_tools(bash()), generate()], scorer=includes(), sandbox=sandbox)
    begun = time.monotonic()
    (log,) = eval(task, model=model_saying(CALLS), log_dir=directory, display="none", max_samples=samples)
    taken = time.monotonic() - begun
    assert log.status == "success", log.error
    assert log.results is not None
    assert log.results.completed_samples == samples
    return taken


if __name__ == "__main__":
    main()
