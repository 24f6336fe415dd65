"""Tasks of our own under `harbor run` with its oracle agent."""

from __future__ import annotations

import http.server
import threading
from typing import TYPE_CHECKING

import pytest

from tests.adapters.harbor.conftest import AGENT_IMAGE, IMAGE
from tests.adapters.image import USER, build_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.adapters.harbor.conftest import Trial

    MakeTask = Callable[..., Path]
    Run = Callable[..., list[Trial]]

OFFLINE = f'docker_image = "{IMAGE}"\nnetwork_mode = "no-network"'


def test_the_oracle_solves_a_task(make_task: MakeTask, harbor_run: Run) -> None:
    task = make_task("echo hello >greeting; id -un; pwd", "test $(cat /work/greeting) = hello", environment=OFFLINE)
    (trial,) = harbor_run(task)
    assert (trial.reward, trial.error) == (1.0, ""), trial.said
    assert trial.file("agent/oracle.txt") == "root\n/work\n"


def test_a_wrong_solution_gets_no_reward(make_task: MakeTask, harbor_run: Run) -> None:
    (trial,) = harbor_run(make_task("echo goodbye >greeting", "grep hello /work/greeting", environment=OFFLINE))
    assert (trial.reward, trial.error) == (0.0, "")


def test_attempts_at_once_see_nothing_of_each_other(make_task: MakeTask, harbor_run: Run) -> None:
    alone = "echo x >>count; test $(wc -l <count) = 1 && sleep 1"
    trials = harbor_run(make_task(alone, "test $(wc -l </work/count) = 1", environment=OFFLINE), "-k", "4", "-n", "4")
    assert [(trial.reward, trial.error) for trial in trials] == [(1.0, "")] * 4


def test_a_task_is_built_from_its_dockerfile(make_task: MakeTask, harbor_run: Run) -> None:
    task = make_task("cat /built >copy", "test $(cat /work/copy) = built", environment='network_mode = "no-network"')
    context = build_context(task / "environment")
    lines = (context / "Containerfile").read_text() + "RUN echo built >/built\n"
    (context / "Containerfile").unlink()
    (context / "Dockerfile").write_text(lines)
    trials = harbor_run(task, "-k", "2", "-n", "2", "--ek", "build_network=none")
    assert [(trial.reward, trial.error) for trial in trials] == [(1.0, "")] * 2, trials[0].said


def test_a_dockerfile_that_fails_says_why(make_task: MakeTask, harbor_run: Run) -> None:
    task = make_task("true", "true", environment='network_mode = "no-network"')
    (task / "environment" / "Dockerfile").write_text(f"FROM {IMAGE}\nRUN echo no such thing >&2; exit 9\n")
    (trial,) = harbor_run(task, "--ek", "build_network=none")
    assert trial.reward is None
    assert "no such thing" in trial.error


def test_users_directories_and_variables_are_those_of_the_task(make_task: MakeTask, harbor_run: Run) -> None:
    environment = f'{OFFLINE}\nworkdir = "/tmp"\n[environment.env]\nFROM_TASK = "yes"'
    solve = 'echo "$(id -un) $PWD $FROM_TASK $HOME"; touch /logs/agent/mine'
    task = make_task(solve, "test $(id -u) = 0", environment=environment, agent=f'user = "{USER}"')
    (trial,) = harbor_run(task)
    assert (trial.reward, trial.error) == (1.0, ""), trial.said
    assert trial.file("agent/oracle.txt") == f"{USER} /tmp yes /home/{USER}\n"
    assert trial.file("agent/mine") == ""


def test_an_image_whose_user_is_not_root(make_task: MakeTask, harbor_run: Run) -> None:
    environment = OFFLINE.replace(IMAGE, AGENT_IMAGE)
    (trial,) = harbor_run(make_task("id -un", "test $(id -un) = agent", environment=environment))
    assert (trial.reward, trial.error) == (1.0, ""), trial.said
    assert trial.file("agent/oracle.txt") == f"{USER}\n"


def test_what_a_task_leaves_comes_out(make_task: MakeTask, harbor_run: Run) -> None:
    solve = "mkdir -p /logs/artifacts/a && echo kept >/logs/artifacts/a/b; mkfifo /logs/artifacts/pipe"
    (trial,) = harbor_run(make_task(solve, "true", environment=OFFLINE), "--artifact", "/etc/passwd")
    assert (trial.reward, trial.error) == (1.0, ""), trial.said
    assert trial.file("artifacts/logs/artifacts/a/b") == "kept\n"
    assert f"{USER}:" in trial.file("artifacts/etc/passwd")


# --- resources ---


EAT = "python3 -c 'x = bytearray(300 << 20)'; echo $? >ate"


def test_memory_is_a_hard_limit(make_task: MakeTask, harbor_run: Run) -> None:
    environment = f"{OFFLINE}\nmemory_mb = 128"
    (trial,) = harbor_run(make_task(EAT, "test $(cat /work/ate) = 137", environment=environment))
    assert (trial.reward, trial.error) == (1.0, ""), trial.said


def test_memory_is_left_alone_where_harbor_says_so(make_task: MakeTask, harbor_run: Run) -> None:
    task = make_task(EAT, "test $(cat /work/ate) = 0", environment=f"{OFFLINE}\nmemory_mb = 128")
    (trial,) = harbor_run(task, "--memory", "ignore")
    assert (trial.reward, trial.error) == (1.0, ""), trial.said


@pytest.mark.parametrize(("what", "policy"), [("cpus", "limit"), ("cpus", "request"), ("memory", "request")])
def test_what_cannot_be_kept_is_refused(make_task: MakeTask, harbor_run: Run, what: str, policy: str) -> None:
    task = make_task("true", "true", environment=f"{OFFLINE}\nmemory_mb = 128\ncpus = 1")
    (trial,) = harbor_run(task, f"--{what}", policy)
    assert trial.reward is None
    assert "does not support" in trial.said
    assert f"resource {policy}s" in trial.said


# --- network ---


@pytest.fixture
def origin() -> Iterator[int]:
    """Port of a server on this host's loopback."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"origin")

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


FETCH = """
python3 - <<'END' >fetched
import urllib.request
try:
    print(urllib.request.urlopen("http://host.fastclaw.internal:{port}/", timeout=20).read().decode())
except Exception as error:
    print("none:", error)
END
"""


OTHERS = 'allowed_hosts = ["a.example", "*.internal", "192.0.2.0/24", "192.0.2.7", "2001:db8::/32", "2001:db8::1"]'


@pytest.mark.parametrize(
    ("policy", "options", "reached"),
    [
        ('network_mode = "allowlist"\nallowed_hosts = ["host.fastclaw.internal"]', (), True),
        (f'network_mode = "allowlist"\n{OTHERS}', (), False),
        (f'network_mode = "allowlist"\n{OTHERS}', ("--ek", "allowlist=bridge"), False),
        ('network_mode = "no-network"', (), False),
    ],
    ids=["allowed", "others", "others, on a bridge", "none"],
)
def test_a_network_policy_is_kept(
    make_task: MakeTask, harbor_run: Run, origin: int, policy: str, options: tuple[str, ...], reached: bool
) -> None:
    environment = f'docker_image = "{IMAGE}"\n{policy}'
    wanted = "^origin" if reached else "^none:"
    task = make_task(FETCH.format(port=origin), f"grep {wanted} /work/fetched", environment=environment)
    (trial,) = harbor_run(task, *options)
    assert (trial.reward, trial.error) == (1.0, ""), trial.said


def test_a_public_network_can_be_the_proxy(make_task: MakeTask, harbor_run: Run, origin: int) -> None:
    environment = f'docker_image = "{IMAGE}"\nnetwork_mode = "public"'
    verify = "grep '^none:.*403.*not_allowed' /work/fetched"  # the host's loopback is not public
    task = make_task(FETCH.format(port=origin), verify, environment=environment)
    (trial,) = harbor_run(task, "--ek", "public=proxy")
    assert (trial.reward, trial.error) == (1.0, ""), trial.said


def test_a_policy_that_would_change_on_the_way_is_refused(make_task: MakeTask, harbor_run: Run) -> None:
    environment = f'docker_image = "{IMAGE}"\nnetwork_mode = "public"'
    (trial,) = harbor_run(make_task("true", "true", environment=environment, agent='network_mode = "no-network"'))
    assert trial.reward is None
    assert "cannot change network policy" in (trial.error or trial.said)


# --- what cannot be ---


def test_compose_is_refused(make_task: MakeTask, harbor_run: Run) -> None:
    task = make_task("true", "true", environment=OFFLINE)
    (task / "environment" / "docker-compose.yaml").write_text("services: {main: {}}\n")
    (trial,) = harbor_run(task)
    assert "docker-compose.yaml" in (trial.error or trial.said)


def test_an_option_that_is_none_is_refused(make_task: MakeTask, harbor_run: Run) -> None:
    (trial,) = harbor_run(make_task("true", "true", environment=OFFLINE), "--ek", "storag=host")
    assert "Unknown option 'storag'" in trial.said


def test_an_engine_that_is_none_is_said_before_any_trial(make_task: MakeTask, harbor_run: Run) -> None:
    (trial,) = harbor_run(make_task("true", "true", environment=OFFLINE), "--ek", "url=unix:///nowhere")
    assert trial.directory is None
    assert "fastclaw does not run here: engine:" in " ".join(trial.said.split())
