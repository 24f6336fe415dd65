"""Environments of mini-swe-agent: `environment_class: fastclaw.adapters.mini_swe_agent.Environment`."""

import asyncio
import os
import re
from subprocess import TimeoutExpired
from typing import Any, Final

from minisweagent.environments.docker import DockerEnvironment
from pydantic import BaseModel, ConfigDict

from fastclaw import limits, sandbox
from fastclaw.adapters.shared_host import shared_host
from fastclaw.sandbox.loop_thread import loop_thread

OUTPUT_BYTES: Final = 64 * limits.MIB
"""Of a command that writes more, none is kept and the command is ended: a submission, which is output too, is whole or
none. Patches have megabytes at most."""

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
"""As sleep(1) has them, which mini-swe-agent's own containers run."""


class EnvironmentConfig(BaseModel):
    """What an environment takes: the fields of mini-swe-agent's `docker` but for those about that command.

    Attributes:
        image: what the sandbox is made of.
        cwd: where commands run.
        env: variables of commands.
        forward_env: names of variables that commands have from this program, where they are set; `env` wins.
        timeout: seconds for a command.
        container_timeout: after which the sandbox is ended, as for sleep(1): `2h`.
        pull_timeout: seconds for the start, with the pull of its image.
        interpreter: argv before the command.
        start: further parameters of `fastclaw.sandbox.Host.start`, as `memory: 2g`.
        host: parameters of `fastclaw.sandbox.Host`; environments with the same ones share a host.
    """

    model_config = ConfigDict(extra="forbid")

    image: str | None
    cwd: str = "/"
    env: dict[str, str] = {}
    forward_env: list[str] = []
    timeout: int = 30
    container_timeout: str = "2h"
    pull_timeout: int = 120
    interpreter: list[str] = ["bash", "-lc"]
    start: dict[str, Any] = {}
    host: dict[str, Any] = {}


class Environment(DockerEnvironment):
    """A sandbox as an environment of mini-swe-agent. All of a process are on one host; any thread may use one.

    Parameters:
        settings: the fields of `EnvironmentConfig`, and `logger`.

    Attributes:
        container_id: name of its container.
    """

    _box: sandbox.Sandbox | None = None

    def __init__(self, *, config_class: type = EnvironmentConfig, **settings: Any) -> None:
        super().__init__(config_class=config_class, **settings)

    def _start_container(self) -> None:
        self._box = loop_thread().call(self._started())
        self.container_id = self._box.container
        self.logger.info("Started %r", self._box)

    async def _started(self) -> sandbox.Sandbox:
        config, lifetime = self.config, _seconds(self.config.container_timeout)
        try:
            async with asyncio.timeout(config.pull_timeout):
                host = await shared_host(**config.host)
                return await host.start(config.image, lifetime=lifetime, **config.start)
        except TimeoutError as error:
            raise TimeoutError(f"no sandbox of {config.image} within pull_timeout, {config.pull_timeout} s") from error

    def execute(self, action: dict[str, Any], cwd: str = "", *, timeout: int | None = None) -> dict[str, Any]:
        """Run the action's command. Raises nothing for what becomes of it, as mini-swe-agent's own environments.

        Returns:
            `output`: stdout and stderr in the order in which they came; `returncode`: -1 where the command has none of
            its own; `exception_info`: why not.

        Raises:
            Submitted: the command's output says that the task is done.
        """
        try:
            output = self._executed(action.get("command", ""), cwd or self.config.cwd, timeout or self.config.timeout)
        except Exception as error:  # whatever it is, the agent is told
            said = getattr(error, "output", None) or b""
            output = {
                "output": said.decode(errors="replace"),
                "returncode": -1,
                "exception_info": f"An error occurred while executing the command: {error}",
                "extra": {"exception_type": type(error).__name__, "exception": str(error)},
            }
        self._check_finished(output)
        return output

    def _executed(self, command: str, cwd: str, seconds: int) -> dict[str, Any]:
        assert self._box is not None, "the environment is cleaned up"
        argv = [*self.config.interpreter, command]
        forwarded = {name: os.environ[name] for name in self.config.forward_env if name in os.environ}
        running = self._box.run(
            argv,
            cwd=cwd,
            env=forwarded | self.config.env,
            timeout=seconds,
            merge_stderr=True,
            output_limit=OUTPUT_BYTES,
            on_limit="kill",
        )
        done = loop_thread().call(running)
        if done.reason == "timeout":
            raise TimeoutExpired(argv, seconds, done.stdout)
        if done.truncated:
            raise ValueError(f"the command wrote more than {OUTPUT_BYTES} bytes")
        return {"output": done.error or done.text, "returncode": done.exit_code, "exception_info": ""}

    def cleanup(self) -> None:
        """End the sandbox with everything in it. Idempotent."""
        box, self._box = self._box, None
        if box is not None:
            loop_thread().call(box.close())

    def __del__(self) -> None:
        """Ends it without waiting: Python may do this in any thread, also in the one that would do the work."""
        if self._box is not None:
            loop_thread().begin(self._box.close())


def _seconds(duration: str) -> float:
    found = _DURATION.fullmatch(duration)
    if found is None:
        raise ValueError(f"container_timeout is a number with s, m, h or d, as '2h': {duration!r}")
    return float(found[1]) * _SECONDS[found[2]]
