"""Harbor's environments in fastclaw's sandboxes: `harbor run --env fastclaw.adapters.harbor:Environment`."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar, Literal

from harbor.environments.base import BaseEnvironment, ExecResult
from harbor.environments.capabilities import EnvironmentCapabilities, EnvironmentResourceCapabilities
from harbor.environments.definition import require_agent_environment_definition, should_use_prebuilt_docker_image
from harbor.environments.options import EnvironmentOptions
from harbor.models.task.config import NetworkMode
from harbor.models.trial.config import ResourceMode
from pydantic import Field

from fastclaw.adapters.shared_host import shared_host
from fastclaw.sandbox import Host, Network, Sandbox
from fastclaw.sandbox.loop_thread import loop_thread

ROOT = "0:0"
"""Whose files are that come from the host, and who may take them out, whatever the image's user: as with docker cp."""

OUTPUT_LIMIT = "16m"
"""Of each stream of a command: agents read their logs by one. Of a longer one, the beginning and the end are kept."""


class Options(EnvironmentOptions):
    """What `--ek NAME=VALUE` may say."""

    public: Literal["open", "bridge", "proxy"] = Field(
        "open", description="A public network: the engine's own, or by bridge or proxy (allowlist) to any public host."
    )
    allowlist: Literal["proxy", "bridge"] = Field(
        "proxy", description="How a list is kept: programs ask a proxy, or connections are turned to it (needs root)."
    )
    build_network: Literal["default", "host", "none"] = Field("default", description="What RUN steps reach.")
    url: str | None = Field(None, description="The engine's API; by default an engine of fastclaw's own.")
    storage: Literal["private", "host"] = Field("private", description="`host` has the images of your own Podman.")
    sandbox: dict[str, Any] = Field({}, description="Any other option of a sandbox, as JSON.")


class Environment(BaseEnvironment):
    """A task's environment: one sandbox of the host that all trials of this process share."""

    options_model: ClassVar[type[EnvironmentOptions]] = Options
    options: Options
    _box: Sandbox | None = None
    _builds: ClassVar[dict[str, asyncio.Lock]] = {}

    @staticmethod
    def type() -> str:
        return "fastclaw"

    @property
    def capabilities(self) -> EnvironmentCapabilities:
        kinds = ("hostnames", "wildcard_hostnames", "ipv4_addresses", "ipv6_addresses", "ipv4_cidrs", "ipv6_cidrs")
        allowlist = {f"network_allowlist_{kind}": True for kind in kinds}
        return EnvironmentCapabilities(disable_internet=True, network_allowlist=True, **allowlist)

    @classmethod
    def resource_capabilities(cls) -> EnvironmentResourceCapabilities:
        return EnvironmentResourceCapabilities(memory_limit=True)

    @classmethod
    def preflight(cls, kwargs: dict[str, Any] | None = None) -> None:
        super().preflight(kwargs)
        url = [f"--url={kwargs['url']}"] if kwargs and kwargs.get("url") else []
        doctor = [sys.executable, "-m", "fastclaw", "doctor", "--json", *url]
        said = subprocess.run(doctor, capture_output=True, text=True, check=False)
        if said.returncode:
            found = json.loads(said.stdout or "[]")
            why = [f"{it['subject']}: {it['text']}" for it in found if it["level"] == "problem"]
            raise SystemExit(f"fastclaw does not run here: {'; '.join(why) or said.stderr.strip()}")

    def _validate_definition(self) -> None:
        require_agent_environment_definition(self.environment_dir, docker_image=self.task_env_config.docker_image)
        if (self.environment_dir / "docker-compose.yaml").exists():
            raise ValueError("fastclaw has one container for each task, and does not run docker-compose.yaml")

    async def start(self, force_build: bool) -> None:
        self._box = await loop_thread().bring(self._started(force_build))
        await self._upload_environment_dir_after_start()
        await self.ensure_dirs(self._mount_targets(writable_only=True))

    async def _started(self, force_build: bool) -> Sandbox:
        host = await shared_host(runtime="podman", url=self.options.url, storage=self.options.storage)
        image = await self._image(host, force_build)
        megabytes = self._resource_limit_value("memory", auto_mode=ResourceMode.LIMIT)
        memory = None if megabytes is None else f"{megabytes}m"
        asked = {"memory": memory, "network": self._network(), "on_progress": self.logger.debug} | self.options.sandbox
        return await host.start(image, **asked)

    async def _image(self, host: Host, force_build: bool) -> str:
        image = self.task_env_config.docker_image
        if should_use_prebuilt_docker_image(self.environment_dir, docker_image=image, force_build=force_build):
            return str(image)
        async with self._builds.setdefault(self.environment_id, asyncio.Lock()):  # one builds, the others find it done
            hear, network = self.logger.debug, self.options.build_network
            return await host.build(self.environment_dir, file="Dockerfile", network=network, on_progress=hear)

    def _network(self) -> Network:
        if self.network_policy.network_mode == NetworkMode.NO_NETWORK:
            return Network(mode="none")
        if self.network_policy.network_mode == NetworkMode.ALLOWLIST:
            rules = [f"[{host}]:*" if ":" in host else f"{host}:*" for host in self.network_policy.allowed_hosts]
            return Network(mode=self.options.allowlist, allow=rules)
        return Network(mode=self.options.public, allow=[] if self.options.public == "open" else ["*:*"])

    async def stop(self, delete: bool) -> None:
        if self._box is not None:
            await loop_thread().bring(self._box.close())

    @property
    def box(self) -> Sandbox:
        if self._box is None:
            raise RuntimeError("the environment has not started")
        return self._box

    async def upload_file(self, source_path: Path | str, target_path: str) -> None:
        await loop_thread().bring(self.box.put(source_path, target_path, user=ROOT))

    async def upload_dir(self, source_dir: Path | str, target_dir: str) -> None:
        await loop_thread().bring(self.box.put(source_dir, target_dir, user=ROOT))

    async def download_file(self, source_path: str, target_path: Path | str) -> None:
        await loop_thread().bring(self.box.get(source_path, target_path, user=ROOT))

    async def download_dir(self, source_dir: str, target_dir: Path | str) -> None:
        await loop_thread().bring(self.box.get(source_dir, target_dir, user=ROOT))

    async def exec(
        self,
        command: str,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        timeout_sec: int | None = None,
        user: str | int | None = None,
    ) -> ExecResult:
        who = self._resolve_user(user)
        where = {"cwd": cwd or self.task_env_config.workdir, "user": None if who is None else str(who)}
        rules = {"env": self._merge_env(env), "timeout": timeout_sec, "output_limit": OUTPUT_LIMIT}
        done = await loop_thread().bring(self.box.run(["bash", "-c", command], **where, **rules))
        if done.reason == "timeout":
            raise RuntimeError(f"Command timed out after {timeout_sec} seconds")
        return ExecResult(stdout=done.text, stderr=done.error_text, return_code=done.exit_code)
