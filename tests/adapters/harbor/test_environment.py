"""The environment's own calls, as Harbor makes them."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from harbor.environments.factory import EnvironmentFactory
from harbor.models.task.config import EnvironmentConfig
from harbor.models.trial.paths import TrialPaths

from tests.adapters.harbor.conftest import ADAPTER, AGENT_IMAGE, IMAGE
from tests.adapters.image import USER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fastclaw.adapters.harbor import Environment


@pytest.fixture
def environments(tmp_path: Path) -> Any:
    """Makes one by Harbor's factory, and ends it."""

    @asynccontextmanager
    async def started(image: str = IMAGE, **config: Any) -> AsyncIterator[Environment]:
        paths = TrialPaths(tmp_path / "trial")
        paths.mkdir()
        task = EnvironmentConfig(docker_image=image, network_mode="no-network", **config)
        (tmp_path / "environment").mkdir(exist_ok=True)
        environment: Any = EnvironmentFactory.create_environment_from_import_path(
            ADAPTER,
            environment_dir=tmp_path / "environment",
            environment_name="task",
            session_id="task__1__env",
            trial_paths=paths,
            task_env_config=task,
            network_policy=task.resolve_baseline(),
        )
        await environment.start(force_build=False)
        try:
            yield environment
        finally:
            await environment.stop(delete=True)

    return started


async def test_a_command_gives_both_streams_and_its_code(environments: Any) -> None:
    async with environments() as box:
        done = await box.exec("echo out; echo err >&2; exit 7")
        assert (done.stdout, done.stderr, done.return_code) == ("out\n", "err\n", 7)
        assert (await box.exec("[[ a == a ]] && echo ${BASH_VERSION:+bash}")).stdout == "bash\n"
        assert (await box.exec("kill -9 $$")).return_code == 137
        done = await box.exec("head -c 3000000 /dev/zero | tr '\\0' x")
        assert len(done.stdout) == 3_000_000


async def test_what_does_not_start_is_a_result(environments: Any) -> None:
    async with environments() as box:
        done = await box.exec("true", user="nobody-here")
        assert done.return_code != 0
        assert "nobody-here" in done.stderr
        assert (await box.exec("true", cwd="/no/such")).return_code != 0


async def test_a_timeout_ends_the_tree_and_is_an_error(environments: Any) -> None:
    async with environments() as box:
        with pytest.raises(RuntimeError, match="timed out after 1 seconds"):
            await box.exec("setsid sleep 4321 & sleep 4321", timeout_sec=1)
        assert (await box.exec("pgrep -x sleep")).stdout == ""


async def test_a_call_that_is_cancelled_ends_the_tree(environments: Any) -> None:
    async with environments() as box:
        call = asyncio.create_task(box.exec("touch up; sleep 4321 & sleep 4321"))
        await box.exec("until [ -e up ]; do sleep 0.05; done")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (await box.exec("while pgrep -x sleep; do sleep 0.05; done", timeout_sec=20)).return_code == 0


async def test_users_directories_and_variables(environments: Any) -> None:
    async with environments(workdir="/tmp", env={"A": "task", "B": "task"}) as box:
        assert (await box.exec("id -un; pwd; echo $A$B", env={"B": "call"})).stdout == "root\n/tmp\ntaskcall\n"
        assert (await box.exec("id -un; pwd", user=USER, cwd="/work")).stdout == f"{USER}\n/work\n"
        assert (await box.exec("id -un", user=1000)).stdout == f"{USER}\n"
        with box.with_default_user(USER), box.scoped_exec_env({"B": "scope"}):
            assert (await box.exec("id -un; echo $B", env={"B": "call"})).stdout == f"{USER}\nscope\n"


@pytest.mark.parametrize("image", [IMAGE, AGENT_IMAGE])
async def test_files_go_in_and_come_out(environments: Any, tmp_path: Path, image: str) -> None:
    source = tmp_path / "source"
    (source / "sub" / "empty").mkdir(parents=True)
    (source / "run.sh").write_text("#!/bin/bash\necho ran\n")
    (source / "run.sh").chmod(0o755)
    (source / "sub" / "bytes").write_bytes(bytes(range(256)) * 1000)
    (source / "link").symlink_to("sub/bytes")
    async with environments(image) as box:
        await box.exec("mkdir -p /solution && touch /solution/was-here", user="root")
        await box.upload_dir(source, "/solution")
        assert (await box.exec("/solution/run.sh")).stdout == "ran\n"
        assert (await box.exec("ls /solution; stat -c %U /solution/run.sh")).stdout.split() == [
            *("link", "run.sh", "sub", "was-here", "root")
        ]
        await box.upload_file(source / "run.sh", "/deep/er/other.sh")
        assert await box.is_file("/deep/er/other.sh")
        assert await box.is_dir("/deep/er")
        assert not await box.is_dir("/deep/er/other.sh")

        back = tmp_path / "back"
        await box.download_dir("/solution", back)
        assert (back / "sub" / "bytes").read_bytes() == (source / "sub" / "bytes").read_bytes()
        assert os.readlink(back / "link") == "sub/bytes"
        assert (back / "run.sh").stat().st_mode & 0o777 == 0o755
        assert (back / "sub" / "empty").is_dir()
        await box.download_file("/solution/run.sh", tmp_path / "file" / "run.sh")
        assert (tmp_path / "file" / "run.sh").read_text() == (source / "run.sh").read_text()
        with pytest.raises(FileNotFoundError):
            await box.download_file("/nowhere", tmp_path / "nowhere")


async def test_harbors_own_ways_with_directories(environments: Any, tmp_path: Path) -> None:
    """Those that its base class makes of commands and files."""
    async with environments(AGENT_IMAGE) as box:
        await box.reset_dirs(remove_dirs=["/a"], create_dirs=["/a/b"], chmod_dirs=["/a"])
        assert (await box.exec("echo 1 >/a/one.log; echo 2 >/a/two.txt; stat -c %a /a")).stdout == "777\n"
        await box.download_dir_with_exclusions(source_dir="/a", target_dir=tmp_path / "x", exclude=["*.log"])
        assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["b", "two.txt"]
        await box.download_dir_filtered(source_dir="/a", target_dir=tmp_path / "y", include=["*.log"])
        assert [path.name for path in (tmp_path / "y").iterdir()] == ["one.log"]
        await box.empty_dirs(["/a"])
        assert (await box.exec("ls /a")).stdout == ""


async def test_what_is_beside_an_image_comes_to_its_directory(environments: Any, tmp_path: Path) -> None:
    (tmp_path / "environment").mkdir()
    (tmp_path / "environment" / "data.csv").write_text("1,2\n")
    async with environments() as box:
        assert (await box.exec("cat data.csv")).stdout == "1,2\n"


async def test_a_stopped_one_is_gone(environments: Any) -> None:
    async with environments() as box:
        await box.stop(delete=True)
        with pytest.raises(Exception, match="environment"):
            await box.exec("true")
