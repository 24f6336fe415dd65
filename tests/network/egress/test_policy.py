"""Who may connect where, against a model of the rules; and how often, and how much."""

from __future__ import annotations

import time
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw import network_limits
from fastclaw.errors import InvalidParams
from fastclaw.network.egress.addresses import Address, embedded_v4, is_special, parse_host, plain
from fastclaw.network.egress.policy import ANY_PORT, REASONS, STATUS, Policy, Quota, Refused, Verdict

PUBLIC = ip_address("8.8.8.8")


def judge(policy: Policy, host: str, port: int = 443, *, is_local: bool = False) -> str | None:
    """The reason against a target as a client writes it; None: it is allowed."""
    target = parse_host(host)
    if not isinstance(target, str):
        assert policy.judge_host(target, port) == policy.judge_address(target, target, port, is_local=False)
        return policy.judge_address(target, target, port, is_local=is_local).reason
    return policy.judge_host(target, port).reason


def judge_answer(policy: Policy, host: str, address: str, port: int = 443, *, is_local: bool = False) -> str | None:
    """The reason against an address that a name has."""
    return policy.judge_address(host, ip_address(address), port, is_local=is_local).reason


# --- plain cases ---


def test_nothing_is_allowed_without_a_rule() -> None:
    policy = Policy([])
    assert judge(policy, "example.com") == judge(policy, "8.8.8.8") == "not_allowed"
    assert policy.judge_host("example.com", ANY_PORT).reason == "not_allowed"
    assert policy.judge_host("example.com", 443).text == "no rule allows example.com:443"


@pytest.mark.parametrize(
    ("rule", "allowed", "refused"),
    [
        ("a.example", ["a.example:80", "A.EXAMPLE.:443"], ["a.example:8080", "b.a.example:80", "example:80"]),
        ("a.example:8000-8100", ["a.example:8000", "a.example:8100"], ["a.example:7999", "a.example:443"]),
        ("*.example:443", ["a.example:443", "c.b.a.example:443"], ["example:443", "a.example:80", "aexample:443"]),
        ("*:443", ["a.example:443", "8.8.8.8:443", "[2600::1]:443"], ["a.example:80", "8.8.8.8:80"]),
        ("8.8.8.8", ["8.8.8.8:443", "0x08080808:80", "[::ffff:8.8.8.8]:80"], ["8.8.8.9:443", "[64:ff9b::8.8.8.8]:80"]),
        ("8.8.0.0/16:53", ["8.8.0.0:53", "8.8.255.255:53"], ["8.9.0.0:53", "8.8.8.8:443"]),
        ("[2600::/16]:*", ["[2600::1]:1", "[2600:ffff::]:65535"], ["[2601::1]:1", "8.8.8.8:1"]),
        ("xn--bcher-kva.example", ["XN--BCHER-KVA.example:443"], ["bcher-kva.example:443"]),
    ],
)
def test_one_rule(rule: str, allowed: list[str], refused: list[str]) -> None:
    policy = Policy([rule])
    for expected, targets in ((None, allowed), ("not_allowed", refused)):
        for target in targets:
            host, _, port = target.rpartition(":")
            assert judge(policy, host, int(port)) == expected, target


def test_verdicts_that_are_remembered_are_the_same_and_bounded() -> None:
    policy = Policy(["*.example:443"], ["7.example"])
    for _ in range(2):
        for number in range(network_limits.EGRESS_VERDICTS + 9):
            expected = "denied" if number == 7 else None
            assert policy.judge_host(f"{number}.example", 443).reason == expected
            assert policy.judge_address(f"{number}.example", PUBLIC, 443, is_local=False).reason == expected
            assert policy.judge_address(f"{number}.example", PUBLIC, 443, is_local=True).reason is not None
    assert len(policy._verdicts) <= network_limits.EGRESS_VERDICTS


def test_a_verdict_names_its_rule_as_it_was_written() -> None:
    policy = Policy(["*.Example.com:443", "API.example.com"], ["Evil.example.com:80"])
    assert policy.judge_host("api.example.com", 443) == Verdict(
        None, "API.example.com", "api.example.com:443 is allowed by 'API.example.com'"
    )
    assert policy.judge_host("other.example.com", 443).rule == "*.Example.com:443"
    assert policy.judge_host("evil.example.com", 80) == Verdict(
        "denied", "Evil.example.com:80", "evil.example.com:80 is denied by 'Evil.example.com:80'"
    )
    assert policy.judge_host("evil.example.com", 443).reason is None


# --- what leads inside ---

INSIDE = [
    "127.0.0.1",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "168.63.129.16",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fd00:ec2::254",
    "fe80::1",
    "::ffff:127.0.0.1",
    "::127.0.0.1",
    "64:ff9b::169.254.169.254",
    "2002:7f00:1::",
    "2600::5efe:10.0.0.1",
]


@pytest.mark.parametrize("address", INSIDE)
@pytest.mark.parametrize("allow", ["*:*", "0.0.0.0/0:*", "[::/0]:*", "0.0.0.0/1:*", "a.example:*"])
def test_neither_a_name_nor_a_wide_rule_leads_inside(allow: str, address: str) -> None:
    policy = Policy([allow, "a.example:*"])
    assert judge(policy, address) == "special_address"
    assert judge_answer(policy, "a.example", address) == "special_address"
    assert judge_answer(policy, "a.example", address, ANY_PORT) == "special_address"
    assert not policy.lists(ip_address(address), 443)


@pytest.mark.parametrize("text", ["127.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.0.0.1.", "[::ffff:7f00:1]", "0"])
def test_every_numeric_form_is_the_address(text: str) -> None:
    assert judge(Policy(["*:*"]), text) == "special_address"
    assert judge(Policy(["*:*", "127.0.0.1"], ["127.0.0.0/8"]), text) in ("denied", "special_address")


@pytest.mark.parametrize(
    ("rule", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.0/8", "127.9.9.9"),
        ("10.0.0.0/8", "::ffff:10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("[fc00::/7]:443", "fd00::1"),
        ("64:ff9b::10.0.0.0/104", "64:ff9b::10.0.0.1"),
    ],
)
def test_what_a_rule_lists_may_be_reached(rule: str, address: str) -> None:
    policy = Policy(["a.example", rule])
    assert judge(policy, address) is None
    assert judge_answer(policy, "a.example", address) is None
    assert policy.judge_address("a.example", ip_address(address), 443, is_local=True).rule == rule
    assert policy.lists(ip_address(address), 443)
    assert not policy.lists(ip_address(address), 8080)
    assert judge(policy, address, 8080) == "special_address"


def test_the_hosts_own_addresses_must_be_listed_themselves() -> None:
    policy = Policy(["*", "a.example", "8.8.8.0/24", "9.9.9.9"])
    assert judge(policy, "8.8.8.8", is_local=True) == "special_address"
    assert judge_answer(policy, "a.example", "8.8.8.8", is_local=True) == "special_address"
    assert judge(policy, "9.9.9.9", is_local=True) is None
    assert judge_answer(policy, "a.example", "9.9.9.9", is_local=True) is None
    verdict = policy.judge_address("a.example", PUBLIC, 443, is_local=True)
    assert "a.example:443 (8.8.8.8) is this host's own" in verdict.text


def test_a_listed_address_needs_no_name_but_a_denied_name_stays_denied() -> None:
    policy = Policy(["8.8.8.8"], ["evil.example"])
    assert judge_answer(policy, "other.example", "8.8.8.8") is None
    assert judge_answer(policy, "evil.example", "8.8.8.8") == "denied"
    assert judge_answer(policy, "other.example", "9.9.9.9") == "not_allowed"


# --- deny ---


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "2002:a00:1::", "2600::200:5efe:10.0.0.1"]
)
def test_an_address_is_denied_in_every_form(address: str) -> None:
    policy = Policy(["a.example", address], ["10.0.0.0/8"])
    assert judge(policy, address) == judge_answer(policy, "a.example", address) == "denied"


def test_deny_without_ports_is_all_of_them_and_a_star_is_everybody() -> None:
    assert judge(Policy(["a.example:*"], ["a.example"]), "a.example", 9999) == "denied"
    assert judge(Policy(["a.example:*"], ["a.example:25"]), "a.example", 9999) is None
    nobody = Policy(["*:*", "127.0.0.1:*"], ["*"])
    for host in ("a.example", "8.8.8.8", "127.0.0.1", "::1"):
        assert judge(nobody, host) == "denied"


# --- any rules ---

NAMES = ["example", "a.example", "b.a.example", "xa.example", "c.test"]
LISTING = ["10.0.0.0/8", "10.1.0.0/16", "10.1.0.1", "8.8.8.8", "2600::1", "127.0.0.0/8", "64:ff9b::10.1.0.0/112"]
"""Networks that list what is special in them, if anything is."""
WIDE = ["8.8.8.0/24", "0.0.0.0/0", "::/0", "2600::/16", "8.0.0.0/5", "64:ff9b::/96"]
PATTERNS = ["*", "*.example", "*.a.example"]
PORTS = ["", ":80", ":80,443", ":442-444", ":*", ":8080", ":1-79,81-65535"]
ASKED = [1, 79, 80, 81, 442, 443, 444, 8080, 65535]
ADDRESSES = [
    ip_address(text)
    for text in [
        "8.8.8.8",
        "8.8.8.9",
        "9.9.9.9",
        "10.0.0.1",
        "10.1.0.1",
        "127.0.0.1",
        "2600::1",
        "2600::2",
        "::1",
        "::ffff:8.8.8.8",
        "::ffff:10.1.0.1",
        "64:ff9b::8.8.8.8",
        "64:ff9b::10.1.0.1",
    ]
]


def write(host: str, ports: str) -> str:
    return f"[{host}]{ports}" if ":" in host else host + ports


rule_texts = st.builds(write, st.sampled_from(NAMES + LISTING + WIDE + PATTERNS), st.sampled_from(PORTS))
rule_lists = st.lists(rule_texts, max_size=5)
targets = st.sampled_from([*NAMES, *ADDRESSES])


def has_port(ports: str, port: int, *, deny: bool) -> bool:
    if ports in ("", "*"):
        return deny or ports == "*" or port in (80, 443)
    ends = [span.split("-") for span in ports.split(",")]
    return any(int(end[0]) <= port <= int(end[-1]) for end in ends)


def fits(rule: str, host: str | Address, port: int, *, deny: bool = False, closed: bool = False) -> bool:
    """One rule by itself.

    Parameters:
        closed: only if it lists special addresses.
    """
    host_text, _, ports = rule[1:].replace("]", "", 1).rpartition(":") if rule[0] == "[" else rule.partition(":")
    if rule.endswith("]"):
        host_text, ports = rule[1:-1], ""
    if not has_port(ports, port, deny=deny) or (closed and host_text not in LISTING):
        return False
    if host_text == "*":
        return True
    if host_text in NAMES + PATTERNS:
        return isinstance(host, str) and (host == host_text or ("*" in host_text and host.endswith(host_text[1:])))
    return not isinstance(host, str) and host in ip_network(host_text)


def naive(allow: list[str], deny: list[str], asked: list[str | Address], port: int, *, is_local: bool) -> str | None:
    """The same decision rule by rule. AccessRequest is a name, an address, or both."""
    within = [inner for host in asked if not isinstance(host, str) and (inner := embedded_v4(host))]
    if any(fits(rule, host, port, deny=True) for rule in deny for host in [*asked, *within]):
        return "denied"
    addresses = [plain(host) for host in asked if not isinstance(host, str)]
    closed = any(is_local or is_special(address) for address in addresses)
    hosts = addresses if closed else [*addresses, *(host for host in asked if isinstance(host, str))]
    if any(fits(rule, host, port, closed=closed) for rule in allow for host in hosts):
        return None
    return "special_address" if closed else "not_allowed"


@given(rule_lists, rule_lists, targets, st.sampled_from(ASKED))
def test_a_target_against_the_model(allow: list[str], deny: list[str], host: str | Address, port: int) -> None:
    assert Policy(allow, deny).judge_host(host, port).reason == naive(allow, deny, [host], port, is_local=False)


@given(
    rule_lists, rule_lists, st.sampled_from(NAMES), st.sampled_from(ADDRESSES), st.sampled_from(ASKED), st.booleans()
)
def test_an_answer_against_the_model(
    allow: list[str], deny: list[str], name: str, address: Address, port: int, is_local: bool
) -> None:
    policy = Policy(allow, deny)
    expected = naive(allow, deny, [name, address], port, is_local=is_local)
    assert policy.judge_address(name, address, port, is_local=is_local).reason == expected
    alone = naive(allow, deny, [address], port, is_local=is_local)
    assert policy.judge_address(address, address, port, is_local=is_local).reason == alone


@given(rule_lists, targets, st.sampled_from(ADDRESSES), st.sampled_from(ASKED), st.booleans())
def test_deny_wins(rules: list[str], host: str | Address, address: Address, port: int, is_local: bool) -> None:
    """What is allowed and denied by the same words is never allowed."""
    policy = Policy(rules, rules)
    own = host if not isinstance(host, str) else address
    assert policy.judge_host(host, port).reason is not None
    assert policy.judge_address(host, own, port, is_local=is_local).reason is not None
    assert not isinstance(host, str) or policy.judge_host(host, ANY_PORT).reason is not None
    assert not policy.allows_plain_http(host)


@given(rule_lists, rule_lists, rule_texts, targets, st.sampled_from(ASKED))
def test_a_further_deny_rule_allows_nothing(
    allow: list[str], deny: list[str], more: str, host: str | Address, port: int
) -> None:
    before, after = Policy(allow, deny), Policy(allow, [*deny, more])
    assert before.judge_host(host, port).reason is None or after.judge_host(host, port).reason is not None


def reordered(rules: list[str]) -> st.SearchStrategy[tuple[list[str], list[str]]]:
    return st.tuples(st.just(rules), st.permutations(rules))


@given(rule_lists.flatmap(reordered), rule_lists.flatmap(reordered), targets, st.sampled_from([*ASKED, ANY_PORT]))
def test_the_order_of_rules_does_not_matter(
    allow: tuple[list[str], list[str]], deny: tuple[list[str], list[str]], host: str | Address, port: int
) -> None:
    one, other = (Policy(*rules) for rules in zip(allow, deny, strict=True))
    assert one.judge_host(host, port) == other.judge_host(host, port)
    judged = [policy.judge_address(host, PUBLIC, port, is_local=False) for policy in (one, other)]
    assert judged[0] == judged[1]


@given(rule_lists, rule_lists, targets, st.sampled_from(ADDRESSES), st.booleans())
def test_any_port_is_one_of_all(
    allow: list[str], deny: list[str], host: str | Address, address: Address, is_local: bool
) -> None:
    policy = Policy(allow, deny)
    open_ports = [port for port in ASKED if policy.judge_host(host, port).reason is None]
    assert (policy.judge_host(host, ANY_PORT).reason is None) == bool(open_ports)
    assert policy.allows_plain_http(host) == any(port != 443 for port in open_ports)
    address = address if isinstance(host, str) else host
    reasons = [policy.judge_address(host, address, port, is_local=is_local).reason for port in ASKED]
    assert (policy.judge_address(host, address, ANY_PORT, is_local=is_local).reason is None) == (None in reasons)


@given(rule_lists, targets, st.sampled_from(ADDRESSES), st.sampled_from([*ASKED, ANY_PORT]))
def test_texts_are_one_line(rules: list[str], host: str | Address, address: Address, port: int) -> None:
    policy = Policy(rules, rules[:1])
    for verdict in (policy.judge_host(host, port), policy.judge_address(host, address, port, is_local=True)):
        assert verdict.text.isascii()
        assert verdict.text.isprintable()
        assert (verdict.rule is not None) == (verdict.reason in (None, "denied"))
        assert verdict.rule is None or verdict.rule in rules


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
def test_who_asks_for_the_hosts_loopback_is_told_the_way_that_there_is(address: str) -> None:
    """A rule for the address itself is refused (`refuse_oneself`)."""
    for policy in (Policy([]), Policy(["*:*"])):
        told = policy.judge_address(ip_address(address), ip_address(address), 8123, is_local=True)
        assert told.reason == "special_address"
        assert "host.fastclaw.internal" in told.text


# --- rules without effect ---


@pytest.mark.parametrize(
    ("allow", "deny", "by"),
    [
        ("a.example", "a.example", "a.example"),
        ("a.example:443", "*.example:400-500", "*.example:400-500"),
        ("*.a.example", "*.example", "*.example"),
        ("*", "*", "*"),
        ("8.8.8.0/24", "8.8.0.0/16", "8.8.0.0/16"),
        ("8.8.8.8", "*", "*"),
        ("a.example", "a.example:80", None),
        ("a.example", "b.example", None),
        ("*.example", "a.example", None),
        ("8.8.0.0/16", "8.8.8.0/24", None),
        ("8.8.8.8", "8.8.8.9", None),
    ],
)
def test_a_rule_that_can_never_take_effect_is_found(allow: str, deny: str, by: str | None) -> None:
    found = list(Policy(["other.example", allow], [deny, "c.example"]).overruled())
    assert [pair for pair in found if pair[0] == allow] == ([] if by is None else [(allow, by)])


@given(rule_lists, rule_lists, targets, st.sampled_from(ADDRESSES), st.sampled_from(ASKED))
def test_what_is_without_effect_allows_nothing(
    allow: list[str], deny: list[str], host: str | Address, address: Address, port: int
) -> None:
    policy = Policy(allow, deny)
    without = {rule for rule, _ in policy.overruled()}
    rest = Policy([rule for rule in allow if rule not in without], deny)
    assert (policy.judge_host(host, port).reason is None) == (rest.judge_host(host, port).reason is None)
    one, other = (rules.judge_address(host, address, port, is_local=False).reason for rules in (policy, rest))
    assert (one is None) == (other is None)


# --- plain HTTP ---


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("a.example", True),
        ("A.Example.", True),
        ("b.example", False),
        ("c.example", False),
        ("d.example", False),
        ("0x7f.1", True),
        ("8.8.8.8", False),
        ("no host", False),
    ],
)
def test_plain_http(host: str, expected: bool) -> None:
    policy = Policy(["a.example", "b.example:443", "c.example", "127.0.0.1:80", "8.8.8.8:443"], ["c.example:80"])
    assert policy.allows_plain_http(host) == expected


# --- what is no rule ---


@pytest.mark.parametrize(
    ("allow", "deny", "path", "text"),
    [
        (["a.example", "b..example"], [], "$.options.network.allow[1]", "single dots"),
        (["a.example"], ["b.example", "c.example", "*x"], "$.options.network.deny[2]", "'*.example.com'"),
        (["2001:db8::1:443"], [], "$.options.network.allow[0]", "[2001:db8::1]:443"),
        (["a"] * (network_limits.EGRESS_RULES + 1), [], "$.options.network.allow", "10000 is the most"),
        ([], ["a"] * (network_limits.EGRESS_RULES + 1), "$.options.network.deny", "10000 is the most"),
    ],
)
def test_a_rule_that_is_none_is_named(allow: list[str], deny: list[str], path: str, text: str) -> None:
    with pytest.raises(InvalidParams) as raised:
        Policy(allow, deny)
    assert raised.value.data["path"] == path
    assert str(raised.value).startswith(path)
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)


# --- words ---


def test_every_reason_has_a_status() -> None:
    assert set(STATUS) == set(REASONS)
    assert len(set(REASONS)) == len(REASONS)
    assert set(STATUS.values()) == {400, 403, 429, 502, 504}


def test_a_refusal_says_why() -> None:
    refused = Refused("denied", "because")
    assert (refused.reason, refused.text, str(refused)) == ("denied", "because", "because")


# --- cost ---


def many(count: int) -> Policy:
    """Rules of every kind, none of which fits, and one that does."""
    kinds = [
        lambda n: f"host{n}.example.org:443",
        lambda n: f"*.zone{n}.example.org:443",
        lambda n: f"{IPv4Address(0x0B00_0000 + n * 256)}/24:443",
        lambda n: f"[{IPv6Address((0x2600 << 112) + (n << 64))}/64]:443",
        lambda n: f"crowded.example.org:{1000 + n}",
    ]
    rules = [kinds[n % len(kinds)](n) for n in range(count - 1)]
    return Policy([*rules, "api.example.com:443"], rules)


def cost_s(policy: Policy) -> float:
    """The least time of one round of decisions."""
    hosts = [parse_host(text) for text in ("api.example.com", "a.b.c.example.org", "8.8.8.8", "2600::1")]
    rounds = []
    for _ in range(30):
        started = time.perf_counter()
        for _ in range(20):
            for host in hosts:
                policy.judge_host(host, 443)
        rounds.append(time.perf_counter() - started)
    return min(rounds)


def test_ten_thousand_rules_cost_what_ten_do() -> None:
    few, lots = many(10), many(network_limits.EGRESS_RULES)
    assert lots.judge_host("api.example.com", 443).reason is None
    assert cost_s(lots) < 3 * cost_s(few)


def test_no_more_connections_than_may_be_open() -> None:
    quota = Quota(2, 1_000, None)
    assert [quota.enter(0), quota.enter(0), quota.enter(0)] == [None, None, "too_many_connections"]
    assert quota.open == 2
    quota.leave()
    assert quota.open == 1
    assert quota.enter(0) is None


def test_a_burst_of_one_seconds_worth_then_the_rate() -> None:
    quota = Quota(1_000, 4, None)
    assert [quota.enter(10.0) for _ in range(5)] == [None] * 4 + ["too_fast"]
    assert quota.enter(10.25) is None
    assert quota.enter(10.25) == "too_fast"
    assert [quota.enter(60.0) for _ in range(5)] == [None] * 4 + ["too_fast"]


def test_one_that_is_turned_away_costs_nothing() -> None:
    quota = Quota(1, 2, None)
    assert quota.enter(0) is None
    assert {quota.enter(0) for _ in range(10)} == {"too_many_connections"}
    assert quota.open == 1
    quota.leave()
    assert quota.enter(0) is None


def test_a_clock_that_goes_back_gives_nothing() -> None:
    quota = Quota(100, 1, None)
    assert quota.enter(100.0) is None
    assert quota.enter(50.0) == "too_fast"
    assert quota.enter(50.9) == "too_fast"


@pytest.mark.parametrize(
    ("max_bytes", "moved", "told"),
    [
        (None, [10**18, 0], [True, True]),
        (10, [0, 9, 0, 1, 0], [True, True, True, False, False]),
        (10, [100, 1], [False, False]),
        (0, [0], [False]),
    ],
)
def test_bytes_until_they_are_used_up(max_bytes: int | None, moved: list[int], told: list[bool]) -> None:
    quota = Quota(1, 1, max_bytes)
    assert [quota.spend(count) for count in moved] == told


events = st.lists(st.tuples(st.floats(0, 2), st.booleans()), max_size=60)


@given(events, st.integers(1, 5), st.integers(1, 8))
def test_whatever_happens_the_bounds_hold(events: list[tuple[float, bool]], most: int, rate: int) -> None:
    quota = Quota(most, rate, None)
    now_s, entered = 0.0, []
    for pause_s, comes in events:
        now_s += pause_s
        if comes and quota.enter(now_s) is None:
            entered.append(now_s)
        elif not comes and quota.open:
            quota.leave()
        assert 0 <= quota.open <= most
    for start in entered:
        # What the bucket holds, and what runs into it meanwhile; 1 for rounding.
        assert sum(start <= moment <= start + 1 for moment in entered) <= 2 * rate + 1
