"""What the containers of an environment may reach: the four modes of `options.network`.

    none, open   the engine's own affair
    proxy        no route at all; the container's spawner listens on its loopback, and the egress proxy serves that
    bridge       a network of its own; its firewall turns everything to the egress proxy

Owns which mode is had where, and the variables that programs get. The proxy is `egress/`, rules and routes are
`bridge/`.
"""

from __future__ import annotations

import logging
import os
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from fastclaw import network_limits
from fastclaw.engine.container_spec import HOSTNAME, NO_NETWORK, OPEN_NETWORK
from fastclaw.errors import ExecFailed, InvalidParams, StartFailed
from fastclaw.network.egress.accounting import AuditLog
from fastclaw.network.egress.addresses import parse_host
from fastclaw.network.egress.http_messages import HTTP_PORT
from fastclaw.network.egress.policy import Policy
from fastclaw.network.egress.proxy import EgressProcess, EgressProxy
from fastclaw.network.egress.proxy_frames import EgressConfig, Injection, Upstream

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AsyncExitStack

    from fastclaw.engine.container import Container
    from fastclaw.engine.container_spec import ContainerNetwork
    from fastclaw.network.bridge.bridge import FirewalledBridge
    from fastclaw.options import Inject, SecretSource
    from fastclaw.options import Network as Options
    from fastclaw.options import Upstream as UpstreamOptions

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"

_OWN_NAMES = ("localhost", "127.0.0.1", "0.0.0.0", "ip6-localhost", "ip6-loopback", HOSTNAME)
NO_PROXY = ",".join((*_OWN_NAMES, "127.0.0.0/8", "::1"))
"""What a sandbox calls itself. Not `[::1]`, which urllib and Node's fetch would need: with it httpx makes no client at
all (0.24 and later, encode/httpx#3221; 0.24.0 makes none with `::1` either, encode/httpx#2674)."""

NON_PROXY_HOSTS = "|".join((*_OWN_NAMES, "127.*", "[::1]"))
"""The same for the JVM ("Networking Properties" of its API documentation)."""

_JAVA = "JAVA_TOOL_OPTIONS"


class EnvironmentNetwork:
    """What the containers of one environment are connected to; by itself the modes `none` and `open`.

    Parameters:
        spec: what the containers' create call says.
        proxy: what serves the listeners; the caller closes it.

    Attributes:
        env: variables for every process.
    """

    def __init__(self, mode: str, spec: ContainerNetwork, proxy: EgressProxy | None = None) -> None:
        self.mode, self.spec = mode, spec
        self.env: dict[str, str] = {}
        self._proxy = proxy
        self._instead: dict[str, str] = {}

    def instead_of(self, asked: str, why: str) -> None:
        """Say in `health` that another mode was asked for."""
        self._instead = {"asked": asked, "why": why}

    async def attach(self, container: Container, init: int) -> None:
        """Connect a container, as `container.Network` says."""

    def detach(self, container: Container) -> None:
        """Disconnect a container, as `container.Network` says."""

    @property
    def trouble(self) -> str | None:
        """What is wrong with it now, in one line."""
        return None if self._proxy is None else self._proxy.trouble

    def health(self) -> dict[str, Any]:
        """What `health.details.network` says."""
        return {"mode": self.mode, **self._instead, **({} if self._proxy is None else self._proxy.health())}


class ProxyNetwork(EnvironmentNetwork):
    """Mode `proxy`: a listener on each container's loopback, served by the egress proxy."""

    def __init__(self, proxy: EgressProxy) -> None:
        super().__init__("proxy", NO_NETWORK, proxy)
        self.env = proxy_variables(LOOPBACK)
        self._listen, self._unlisten = proxy.listen, proxy.unlisten
        self._listeners: dict[Container, int] = {}

    async def attach(self, container: Container, init: int) -> None:
        """Listen inside."""
        try:
            listener = await container.listen_inside(network_limits.EGRESS_PROXY_PORT)
        except ExecFailed as error:
            raise StartFailed(f"the egress proxy cannot listen inside: {error}", "network_failed") from error
        self._listeners[container] = self._listen("proxy", listener)

    def detach(self, container: Container) -> None:
        """Stop listening inside."""
        number = self._listeners.pop(container, None)
        if number is not None:
            self._unlisten(number)


class BridgedNetwork(EnvironmentNetwork):
    """Mode `bridge`: a bridge whose firewall turns everything to the egress proxy.

    Parameters:
        bridge: started; the caller closes it.
    """

    def __init__(self, bridge: FirewalledBridge, proxy: EgressProxy) -> None:
        super().__init__("bridge", bridge.spec, proxy)
        self.env = proxy_variables(bridge.gateway)
        self._bridge = bridge
        for role, listener in bridge.take_listeners():
            proxy.listen(role, listener)

    async def attach(self, container: Container, init: int) -> None:
        """Connect a container to the bridge."""
        await self._bridge.attach(container.id, init)


async def open_network(
    options: Options,
    *,
    why_no_listener: str | None,
    bridge: Callable[[], FirewalledBridge],
    egress: EgressProcess,
    setup: AsyncExitStack,
    engine: str = "",
) -> EnvironmentNetwork:
    """What the options ask for, or, where that cannot be had, what keeps the same promises.

    Parameters:
        why_no_listener: why nothing listens inside the containers for the proxy; None where their init does.
        bridge: makes one, not started yet.
        egress: serves all environments; stays its owner's.
        setup: gets what must be closed.
        engine: URL of the engine, which is closed to the containers.

    Raises:
        InvalidParams: a secret that is not there.
        StartFailed: `network_failed`, `bad_log`.
    """
    if options.mode == "open":
        return EnvironmentNetwork("open", OPEN_NETWORK)
    if options.mode == "none" or (options.mode == "proxy" and why_no_listener and not options.allow):
        network = EnvironmentNetwork("none", NO_NETWORK)
        if options.mode == "proxy":
            network.instead_of("proxy", f"{why_no_listener}, and nothing is allowed")
        return network
    if options.log is not None:
        AuditLog.check(options.log, "options.network.log")
    if options.mode == "proxy" and why_no_listener is None:
        return ProxyNetwork(_closed_by(setup, EgressProxy(egress_config(options, None, engine), egress)))
    return await _open_bridge(options, bridge(), egress, engine, setup, why_no_listener)


async def _open_bridge(
    options: Options,
    bridge: FirewalledBridge,
    egress: EgressProcess,
    engine: str,
    setup: AsyncExitStack,
    why_no_listener: str | None,
) -> EnvironmentNetwork:
    setup.push_async_callback(bridge.aclose)
    await bridge.start()
    proxy = EgressProxy(egress_config(options, bridge.subnet, engine), egress)
    network = BridgedNetwork(bridge, _closed_by(setup, proxy))
    if options.mode == "proxy" and why_no_listener is not None:
        logger.warning("network mode proxy: %s; taking mode bridge", why_no_listener)
        network.instead_of("proxy", why_no_listener)
    return network


def _closed_by(setup: AsyncExitStack, proxy: EgressProxy) -> EgressProxy:
    setup.push_async_callback(proxy.aclose)
    return proxy


def overruled(options: Options) -> list[str]:
    """A warning that some rules can never take effect, in a line; empty where all can."""
    found = list(Policy(options.allow, options.deny).overruled())
    if not found:
        return []
    rule, denier = found[0]
    more = f", and neither can {len(found) - 1} more" if len(found) > 1 else ""
    return [f"options.network.allow: {rule!r} can never take effect, for {denier!r} denies it{more}"]


def egress_config(options: Options, subnet: str | None = None, engine: str = "") -> EgressConfig:
    """What the proxy is told, secrets included.

    Raises:
        InvalidParams: a secret that is not there, or is no value of a header.
    """
    port = urlsplit(engine).port
    return EgressConfig(
        allow=options.allow,
        deny=options.deny,
        inject=[_injection(inject, f"$.options.network.inject[{at}]") for at, inject in enumerate(options.inject)],
        log=options.log,
        log_max_bytes=options.log_max_bytes,
        max_connections=options.max_connections,
        max_connections_per_s=options.max_connections_per_s,
        max_bytes=options.max_bytes,
        idle_timeout_ms=options.idle_timeout_ms,
        connect_timeout_ms=options.connect_timeout_ms,
        upstream=None if options.upstream is None else _upstream(options.upstream),
        hint="" if options.upstream is not None else _unused_proxy(),
        closed_ports=[] if port is None else [port],
        subnet=subnet,
    )


def _injection(inject: Inject, path: str) -> Injection:
    value = _secret(inject.value_from, f"{path}.value_from")
    return Injection(host=inject.host, header=inject.header, value=value)


def _upstream(given: UpstreamOptions) -> Upstream:
    """Messages have nothing of the URL in them: there may be a password in it."""
    path = "$.options.network.upstream"
    text = _secret(given, path) if given.url is None else given.url
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parse_host(parts.hostname or ""), parts.port or HTTP_PORT
    except ValueError:
        raise InvalidParams(f"{path}: not the URL of a proxy; write http://HOST:PORT", path=path) from None
    if parts.scheme != "http" or parts.path.strip("/") or parts.query or parts.fragment:
        raise InvalidParams(f"{path}: only a proxy at http://HOST:PORT can be used", path=path)
    login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    basic = None if parts.username is None else "Basic " + b64encode(login.encode()).decode()
    return Upstream(host=str(host), port=port, authorization=basic)


def _unused_proxy() -> str:
    """A hint for a user behind a proxy that is not asked for here."""
    names = [name for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy") if os.environ.get(name)]
    if not names:
        return ""
    return f'; this host has a proxy, which is used with options.network.upstream only ({{"env": "{names[0]}"}})'


def _secret(source: SecretSource | UpstreamOptions, path: str) -> str:
    """What is in a variable of ours, or in a file. Messages name where it should be, and nothing of it."""
    if source.env is not None:
        path = f"{path}.env"
        value = os.environ.get(source.env)
        missing = f"fastclaw's environment has no {source.env}"
    else:
        path = f"{path}.file"
        value, missing = _read_secret(Path(source.file or ""))
    if value is None:
        raise InvalidParams(f"{path}: {missing}", path=path)
    if not value or len(value) > network_limits.EGRESS_SECRET_BYTES or not (value.isascii() and value.isprintable()):
        most = network_limits.EGRESS_SECRET_BYTES
        raise InvalidParams(f"{path}: not the value of a header: 1 to {most} printable ASCII characters", path=path)
    return value


def _read_secret(path: Path) -> tuple[str | None, str]:
    """A file's text without the newline that editors leave at its end, or why there is none."""
    try:
        with path.open("rb") as file:
            return file.read(network_limits.EGRESS_SECRET_BYTES + 2).decode("latin-1").rstrip("\r\n"), ""
    except OSError as error:
        return None, f"cannot read {path}: {error.strerror}"


def proxy_variables(host: str) -> dict[str, str]:
    """What tells programs of the proxy: both cases, since curl reads `http_proxy` in lower case only. Node heeds them
    from 22.21 and 24.5 on, where it is asked to; a JVM knows properties only."""
    port = network_limits.EGRESS_PROXY_PORT
    url = f"http://{host}:{port}"
    variables = {"HTTP_PROXY": url, "HTTPS_PROXY": url, "NO_PROXY": NO_PROXY}
    java = [f"-D{scheme}.proxyHost={host} -D{scheme}.proxyPort={port}" for scheme in ("http", "https")]
    return {
        **variables,
        **{name.lower(): value for name, value in variables.items()},
        "NODE_USE_ENV_PROXY": "1",
        _JAVA: " ".join((*java, f"-Dhttp.nonProxyHosts={NON_PROXY_HOSTS}")),
    }


def beside(variables: dict[str, str], asked: dict[str, str]) -> dict[str, str]:
    """Ours, with what `options.env` has in the one variable in which a JVM finds all its options."""
    if _JAVA in variables and asked.get(_JAVA):
        return {**variables, _JAVA: f"{asked[_JAVA]} {variables[_JAVA]}"}
    return variables
