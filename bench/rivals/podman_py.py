"""`exec_run` of podman-py, each thread with a client of its own: COUNT AT_ONCE URL CONTAINER."""

from __future__ import annotations

import contextlib
from importlib.metadata import version

from podman import PodmanClient

from bench.rivals.measuring import arguments, measure_threads

count, at_once, (url, name) = arguments()
with contextlib.ExitStack() as stack:
    clients = [stack.enter_context(PodmanClient(base_url=url)) for _ in range(at_once)]
    containers = [client.containers.get(name) for client in clients]

    def run_one(place: int) -> None:
        """One command, by the client of its place."""
        code, output = containers[place].exec_run(["true"])
        assert (code, bool(output)) == (0, False)

    measure_threads(version("podman"), count, at_once, run_one)
