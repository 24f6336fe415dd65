"""Which engine an environment uses: the one that its user named, else one of our own. Looks, and starts nothing."""

import os
from pathlib import Path

from fastclaw.errors import InvalidParams, StartFailed
from fastclaw.options import Options
from fastclaw.podman.service.dirs import default_state_dir
from fastclaw.podman.service.facts import host_facts
from fastclaw.podman.service.plan import ServicePlan, plan_service, why_not_url


def engine_url(options: Options) -> str | None:
    """The engine that the user named: `options.url`, else CONTAINER_HOST; None is one of our own.

    Raises:
        InvalidParams: it is of a form that is not spoken here.
    """
    url = options.url or os.environ.get("CONTAINER_HOST") or None
    why = None if url is None else why_not_url(url)
    if why is not None:
        name = "$.options.url" if options.url else "CONTAINER_HOST"
        raise InvalidParams(f"{name}: {why}", "unsupported", path="$.options.url")
    return url


def why_no_engine(options: Options) -> str | None:
    """Why Podman cannot be used here, in one line; None where it can, as far as can be told without starting it."""
    if engine_url(options) is not None:
        return None
    try:
        own_plan(options)
    except StartFailed as error:
        return str(error)
    return None


def own_state_dir(options: Options) -> Path:
    """Where an engine of our own keeps images and records."""
    return Path(options.state_dir) if options.state_dir else default_state_dir()


def own_plan(options: Options) -> ServicePlan:
    """How an engine of our own runs on this host.

    Raises:
        StartFailed: `engine_unavailable`: it cannot.
    """
    facts = host_facts(own_state_dir(options))
    return plan_service(facts, oci_runtime=options.oci_runtime, storage=options.storage)
