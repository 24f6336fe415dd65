"""`fastclaw doctor` on this host, and on one without an engine."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from fastclaw.cli.diagnosis import Finding
from fastclaw.cli.doctor import report
from tests.cli.programs import FASTCLAW_WITHOUT_PODMAN, Call, fastclaw, homes, without_podman

if TYPE_CHECKING:
    from tests.docker_fixtures import DockerService
    from tests.engine_fixtures import EngineService

ENGINE = r"podman \d+\.\d[\d.]*, conmon \d+\.\d[\d.]*, (crun|runc) \d+\.\d[\d.]*, \w+"


@pytest.mark.podman
def test_a_private_engine_is_started_for_the_question_and_stopped(
    engine_service: EngineService, short_dir: Path
) -> None:
    done = fastclaw("doctor", "--json", env=homes(short_dir))
    assert (done.returncode, done.stderr) == (0, b"")
    findings = {finding.subject: finding for finding in msgspec.json.decode(done.stdout, type=list[Finding])}
    assert re.fullmatch(ENGINE, findings["engine"].text)
    assert {"engine", "disk", "capacity", "relay", "users"} <= set(findings)
    assert findings["spawner"].level == findings["image"].level == findings["limits"].level == "ok"
    assert re.match(r"\d+ processes at a time; .* binds first", findings["capacity"].text)
    assert list((short_dir / "r").rglob("podman.sock")) == []


def subjects() -> set[str]:
    """Those that the documentation names."""
    text = (Path(__file__).parents[2] / "docs" / "hosts.md").read_text(encoding="utf-8")
    return set(re.findall(r"`(\w+)`", text.partition("The subjects: ")[2].partition("```")[0]))


@pytest.mark.podman
def test_its_json_has_the_documented_shape(engine_service: EngineService, tmp_path: Path) -> None:
    runsc = tmp_path / "runsc"
    runsc.write_text("#!/bin/sh\necho runsc version release-20240729.0\n")
    runsc.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = fastclaw("doctor", "--json", "--url", engine_service.url, env=environment)
    found = json.loads(done.stdout)
    assert "gvisor" in {finding["subject"] for finding in found}
    assert {finding["subject"] for finding in found} <= subjects() >= {"engine", "limits", "users", "relay"}
    for finding in found:
        assert {"subject", "level", "text"} <= finding.keys() <= {"subject", "level", "text", "advice"}
        assert all(isinstance(value, str) and value for value in finding.values())
        assert finding["level"] in {"ok", "warning", "problem"}
    assert done.returncode == int("problem" in {finding["level"] for finding in found})


@pytest.mark.podman
def test_the_report_fits_a_terminal(engine_service: EngineService, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = call("doctor", "--url", engine_service.url)
    assert done.returncode == 0
    lines = done.stdout.decode().splitlines()
    assert re.search(ENGINE, lines[0])
    assert all(len(line) <= 80 for line in lines if "->" not in line)
    assert all(re.match(r"(ok|warning|problem)? +\S", line) for line in lines)
    assert "\x1b" not in done.stdout.decode(), "no colours where there is no terminal"


def test_without_podman_there_is_a_problem_with_advice(tmp_path: Path) -> None:
    environment = {**homes(tmp_path), **without_podman(tmp_path)}
    done = fastclaw("doctor", "--json", command=FASTCLAW_WITHOUT_PODMAN, env=environment)
    assert (done.returncode, done.stderr) == (1, b"")
    engine = msgspec.json.decode(done.stdout, type=list[Finding])[0]
    assert (engine.subject, engine.level) == ("engine", "problem")
    assert "podman is not installed" in engine.text
    assert (engine.advice or "").startswith("apt-get install podman")


def test_where_only_docker_is_there_the_findings_are_of_its_containers(
    tmp_path: Path, docker_service: DockerService
) -> None:
    environment = {**homes(tmp_path), **without_podman(tmp_path), "DOCKER_HOST": docker_service.url}
    done = fastclaw("doctor", "--json", command=FASTCLAW_WITHOUT_PODMAN, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    findings = msgspec.json.decode(done.stdout, type=list[Finding])
    texts = {(finding.subject, finding.level): finding.text for finding in findings if finding.subject != "network"}
    assert re.fullmatch(rf"docker [\d.]+.*, \w+ at {docker_service.url}; .*takes it", texts["docker", "ok"])
    assert texts["users", "warning"].endswith("no user namespace: Docker gives containers none of their own")
    assert ("limits", "ok") in texts
    assert "mode open takes Docker's default network, where it has one" in [finding.text for finding in findings]


@pytest.mark.podman
def test_a_podman_that_is_named_as_docker_is_none(tmp_path: Path, engine_service: EngineService) -> None:
    environment = {**homes(tmp_path), "DOCKER_HOST": engine_service.url}
    done = fastclaw("doctor", "--json", "--url", engine_service.url, env=environment)
    findings = {finding.subject: finding for finding in msgspec.json.decode(done.stdout, type=list[Finding])}
    assert (findings["docker"].level, findings["engine"].level) == ("warning", "ok")
    assert "is Podman" in findings["docker"].text


def test_a_docker_whose_address_is_of_another_form_hides_no_other_finding(tmp_path: Path) -> None:
    environment = {**homes(tmp_path), "DOCKER_HOST": "ssh://somewhere"}
    done = fastclaw("doctor", "--json", "--url", "unix:///nonexistent/socket", env=environment)
    assert (done.returncode, done.stderr) == (1, b"")
    findings = {finding.subject: finding for finding in msgspec.json.decode(done.stdout, type=list[Finding])}
    assert (findings["engine"].level, findings["docker"].level) == ("problem", "warning")
    assert findings["docker"].text.startswith("DOCKER_HOST: ssh://somewhere is not spoken here")


@pytest.mark.parametrize("url", ["unix:///nonexistent/socket", "nonsense://x"])
def test_an_engine_that_is_not_there_is_a_problem(call: Call, url: str) -> None:
    done = call("doctor", "--url", url)
    assert (done.returncode, done.stderr) == (1, b"")
    assert done.stdout.startswith(b"problem  engine ")


def test_lines_are_wrapped_below_their_text_and_advice_is_not() -> None:
    findings = [
        Finding(subject="a", level="ok", text="fine"),
        Finding(
            subject="longer", level="problem", text="one two three four five six", advice="do this and then that too"
        ),
    ]
    assert report(findings, 38).replace("\x1b[0m", "").replace("\x1b[32m", "").replace("\x1b[31m", "").splitlines() == [
        "ok       a       fine",
        "problem  longer  one two three four",
        "                 five six",
        "                 -> do this and then that too",
    ]
