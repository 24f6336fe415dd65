"""placeholder until the engine's parts are in"""
from typing import Any
from fastclaw.runtimes.memory import MemoryRuntime as ContainerRuntime
def why_no_engine(options: dict[str, Any]) -> str | None:
    return "not yet"
