"""Reads the `options` of `initialize`: shapes by msgspec, and what a shape cannot say by the rules of each part."""

from collections.abc import Mapping
from typing import Any, TypeVar

from fastclaw import limits
from fastclaw.engine.container_spec import read_capabilities
from fastclaw.errors import InvalidParams
from fastclaw.network.egress.addresses import BadHost
from fastclaw.network.egress.policy import Policy
from fastclaw.network.egress.rules import parse_rule, refuse_oneself
from fastclaw.options import IdRanges, Network, Options, no_templates
from fastclaw.params import convert

FRAMING_HEADERS = frozenset(
    {
        "host",
        "connection",
        "content-length",
        "transfer-encoding",
        "te",
        "trailer",
        "upgrade",
        "keep-alive",
        "expect",
        "via",
    }
)
"""Headers that say where a request goes and where it ends: not to be injected."""


Shape = TypeVar("Shape", bound=Options)


def read_options(given: Mapping[str, Any], shape: type[Shape]) -> Shape:
    """The options of one environment, and more where the shape has more.

    Raises:
        InvalidParams: `unknown_option` with `data.nearest`, a wrong shape, a rule that is none, or what contradicts
            itself.
    """
    options = convert(given, shape, "$.options")
    _check_network(options.network)
    _check_id_ranges(options.id_ranges)
    if options.capabilities is not None:
        read_capabilities(options.capabilities)
    if options.templates and (options.lane == "rest" or options.runtime == "memory"):
        raise no_templates(f"lane {options.lane!r} of runtime {options.runtime!r}")
    return options


def _check_id_ranges(ranges: IdRanges) -> None:
    """None beyond the highest id that there is."""
    fit = (2**32 - limits.IDS - ranges.first) // limits.IDS
    if ranges.count > fit:
        path = "$.options.id_ranges.count"
        raise InvalidParams(f"{path}: from {ranges.first} on there are ids for {fit}", path=path)


def _check_network(network: Network) -> None:
    """Check the rules, and refuse settings that the mode does not use."""
    policy = Policy(network.allow, network.deny)
    for index, text in enumerate(network.allow):
        try:
            refuse_oneself(parse_rule(text))
        except BadHost as error:
            path = f"$.options.network.allow[{index}]"
            raise InvalidParams(f"{path}: {error}", path=path) from None
    if network.mode in ("none", "open"):
        unheeded = [name for name in ("allow", "deny", "inject", "upstream", "log") if getattr(network, name)]
        if unheeded:
            text = f"network mode {network.mode!r} has no proxy to heed {unheeded[0]!r}; use mode 'proxy' or 'bridge'"
            raise InvalidParams(text, path=f"$.options.network.{unheeded[0]}")
    given = network.upstream
    if given is not None and [given.url, given.env, given.file].count(None) != 2:
        path = "$.options.network.upstream"
        raise InvalidParams(f"{path}: name one of 'url', 'env' and 'file'", path=path)
    for index, inject in enumerate(network.inject):
        path = f"$.options.network.inject[{index}]"
        if (inject.value_from.env is None) == (inject.value_from.file is None):
            raise InvalidParams(f"{path}.value_from: name either 'env' or 'file'", path=f"{path}.value_from")
        if inject.header.lower() in FRAMING_HEADERS:
            raise InvalidParams(f"{path}.header: {inject.header} is the proxy's own", path=f"{path}.header")
        if not inject.host.startswith("*.") and not policy.allows_plain_http(inject.host):
            text = (
                f"{path}.host: no rule of 'allow' lets {inject.host} be reached by plain HTTP, and the proxy "
                'cannot add a header to what is encrypted (docs/network.md, "Credentials")'
            )
            raise InvalidParams(text, "unsupported", path=f"{path}.host")
