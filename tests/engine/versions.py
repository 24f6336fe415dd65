"""What an engine may say that it is, for tests of rules."""

from fastclaw.engine.dialects import EngineVersion

VERSION = EngineVersion(
    podman="4.3.1",
    conmon="2.1.6",
    oci_runtime="crun",
    oci_runtime_version="1.8.1",
    rootless=True,
    storage_driver="overlay",
    storage="/s",
    cgroup_version="v2",
    controllers=(),
    user_network="pasta",
    has_user_network=True,
)
