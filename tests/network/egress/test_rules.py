"""Rules as users write them: what they mean, and what is refused with advice."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw import network_limits
from fastclaw.network.egress.addresses import MAX_PORT, BadHost
from fastclaw.network.egress.rules import ALL, WEB, Ports, Rule, RuleIndex, Span, parse_rule, refuse_oneself


@pytest.mark.parametrize(
    ("text", "host", "ports"),
    [
        ("api.example.com", "api.example.com", WEB),
        ("API.Example.COM.:443", "api.example.com", ((443, 443),)),
        ("_x.a_b.example:8000-8100", "_x.a_b.example", ((8000, 8100),)),
        ("xn--bcher-kva.example:80,443,9000-9001", "xn--bcher-kva.example", ((80, 80), (443, 443), (9000, 9001))),
        ("localhost:*", "localhost", ALL),
        ("*.pypi.org", "*.pypi.org", WEB),
        ("*.PyPI.org.:443", "*.pypi.org", ((443, 443),)),
        ("*.com", "*.com", WEB),
        ("*", "*", WEB),
        ("*:*", "*", ALL),
    ],
)
def test_names(text: str, host: str, ports: tuple[Span, ...]) -> None:
    assert parse_rule(text) == Rule(host, ports, text)


@pytest.mark.parametrize(
    ("text", "network", "ports"),
    [
        ("93.184.216.34", "93.184.216.34/32", WEB),
        ("10.0.0.0/8:5432", "10.0.0.0/8", ((5432, 5432),)),
        ("0.0.0.0/0", "0.0.0.0/0", WEB),
        ("2001:db8::1", "2001:db8::1/128", WEB),
        ("2001:DB8:0::1", "2001:db8::1/128", WEB),
        ("2001:db8::", "2001:db8::/128", WEB),
        ("::1", "::1/128", WEB),
        ("2001:db8::1:1ff", "2001:db8::1:1ff/128", WEB),
        ("1:2:3:4:5:6:7:443", "1:2:3:4:5:6:7:443/128", WEB),
        ("2001:db8::/32", "2001:db8::/32", WEB),
        ("[2001:db8::1]", "2001:db8::1/128", WEB),
        ("[2001:db8::/32]", "2001:db8::/32", WEB),
        ("[2001:db8::/32]:443", "2001:db8::/32", ((443, 443),)),
        ("[2001:db8::1:443]:*", "2001:db8::1:443/128", ALL),
        # What the kernel sends IPv4 for is an IPv4 rule.
        ("::ffff:10.0.0.1", "10.0.0.1/32", WEB),
        ("[::ffff:10.0.0.0/104]:80", "10.0.0.0/8", ((80, 80),)),
    ],
)
def test_addresses(text: str, network: str, ports: tuple[Span, ...]) -> None:
    assert parse_rule(text) == Rule(ip_network(network), ports, text)


def test_a_deny_rule_without_ports_means_all() -> None:
    assert parse_rule("example.com", deny=True).ports == ALL
    assert parse_rule("example.com:80", deny=True).ports == ((80, 80),)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", "write HOST or HOST:PORTS"),
        ("  ", "write HOST or HOST:PORTS"),
        (" a.example\n", "write 'a.example'"),
        ("a.example: 443", "write 'a.example:443'"),
        ("a" * 301, "300 are enough"),
        ("https://a.example", "without 'https://'"),
        ("a.example/path", "write 'a.example'"),
        ("user@a.example:80", "is no host name"),
        ("user:pw@a.example:80", "write several ports as HOST:80,443"),
        ("bücher.example", "punycode"),
        ("*.bücher.example", "punycode"),
        ("a..example", "single dots"),
        ("a\0.example", "is no host name"),
        (".a.example", "write '*.a.example'"),
        ("*a.example", "as in '*.example.com'"),
        ("a.*.example", "as in '*.example.com'"),
        ("*.*", "as in '*.example.com'"),
        ("**", "as in '*.example.com'"),
        ("*.", "as in '*.example.com'"),
        ("*.10.0.0.1", "write a network"),
        ("*.1", "write a network"),
        ("*." + ".".join(["a" * 62] * 4) + "a", "can never match"),
        (":443", "write * for any"),
        # ports
        ("a.example:", "write HOST:443"),
        ("a.example:0", "from 1 to 65535"),
        ("a.example:65536", "from 1 to 65535"),
        ("a.example:https", "from 1 to 65535"),
        ("a.example:80,", "from 1 to 65535"),
        ("a.example:80-", "from 1 to 65535"),
        ("a.example:-80", "from 1 to 65535"),
        ("a.example:80,*", "from 1 to 65535"),
        ("a.example:1-2-3", "from 1 to 65535"),
        ("a.example:\uff18\uff10", "from 1 to 65535"),
        ("a.example:443-80", "write 80-443"),
        ("a.example:80:443", "write several ports as HOST:80,443"),
        # addresses
        ("0x7f.1", "write '127.0.0.1'"),
        ("010.0.0.1", "write '8.0.0.1'"),
        ("10", "write '0.0.0.10'"),
        ("127.0.0.1.", "write '127.0.0.1'"),
        ("1.2.3.4.5", "no IPv4 address"),
        ("10/8", "write its address as '0.0.0.10'"),
        ("10.0.0.1/8", "write '10.0.0.0/8'"),
        ("10.0.0.0/33", "0 to 32"),
        ("10.0.0.0/255.0.0.0", "0 to 32"),
        ("10.0.0.0/", "0 to 32"),
        ("2001:db8::/129", "0 to 128"),
        ("2001:db8::1/32", "write '2001:db8::/32'"),
        ("::1/", "0 to 128"),
        ("2001:db8::1:443", "[2001:db8::1]:443"),
        ("2001:db8::1:443", "[2001:db8::1:443]"),
        ("::1:80,443", "[::1]:80,443"),
        ("::1:*", "[::1]:*"),
        ("::1:65535", "[::1]:65535"),
        ("1:2:3:4:5:6:7:8:443", "write [1:2:3:4:5:6:7:8]:443"),
        ("2001:db8::/32:443", "write [2001:db8::/32]:443"),
        ("[2001:db8::]/32:443", "write [ADDRESS]:PORTS"),
        ("[::1", "write [ADDRESS]:PORTS"),
        ("[::1]443", "write [ADDRESS]:PORTS"),
        ("[::1]:", "write HOST:443"),
        ("[10.0.0.1]:80", "write '10.0.0.1:80'"),
        ("[a.example]:80", "write 'a.example:80'"),
        ("fe80::1%eth0", "write the address without it"),
        ("[fe80::1%eth0]:80", "write the address without it"),
        ("fe80::%eth0/64", "write the address without it"),
        ("1::2::3", "no IPv6 address"),
        # nobody can connect to these
        ("0.0.0.0:443", "can never match"),
        ("0.0.0.0/8", "can never match"),
        ("::", "can never match"),
        ("224.0.0.1", "can never match"),
        ("224.0.0.0/4", "can never match"),
        ("[ff02::1]:80", "can never match"),
    ],
)
def test_what_is_no_rule_says_how_to_write_it(text: str, advice: str) -> None:
    with pytest.raises(BadHost) as refused:
        parse_rule(text)
    assert advice in str(refused.value)
    assert str(refused.value).isprintable()
    assert str(refused.value).isascii()


@pytest.mark.parametrize("text", ["0.0.0.0", "224.0.0.0/4", "::"])
def test_what_nobody_can_connect_to_can_be_denied_all_the_same(text: str) -> None:
    assert parse_rule(text, deny=True).ports == ALL


pieces = st.sampled_from(
    [
        "*",
        "*.",
        ".",
        "a",
        "example.com",
        "10.0.0.0",
        "0x7f",
        "::",
        "1",
        "ffff:",
        "[",
        "]",
        "/",
        "8",
        ":",
        "443",
        "-",
        ",",
    ]
)


@given(st.lists(pieces, max_size=9).map("".join) | st.text(max_size=40), st.booleans())
def test_any_text_is_a_rule_or_refused_in_one_line(text: str, deny: bool) -> None:
    rule, refusal = None, ""
    try:
        rule = parse_rule(text, deny=deny)
    except BadHost as refused:
        refusal = str(refused)
    if rule is None:
        assert refusal.isprintable()
        assert 0 < len(refusal) < 10 * network_limits.EGRESS_RULE_BYTES
    else:
        assert rule.text == text
        assert all(1 <= first <= last <= MAX_PORT for first, last in rule.ports)


# --- ports ---

small_spans = st.tuples(st.integers(1, 30), st.integers(1, 30)).map(lambda ends: (min(ends), max(ends)))
port_rules = st.lists(
    st.builds(Rule, st.just("a"), st.lists(small_spans, min_size=1, max_size=3).map(tuple), st.sampled_from("xyz")),
    max_size=6,
)


@given(port_rules, st.integers(1, 31))
def test_a_port_is_found_by_a_rule_that_has_it(rules: list[Rule], port: int) -> None:
    having = {rule.text for rule in rules if any(first <= port <= last for first, last in rule.ports)}
    found = Ports(rules).rule(port)
    assert found in having if having else found is None
    masks = [text for mask, text in Ports(rules).masks() if mask >> port & 1]
    assert masks == ([] if found is None else [found])


@given(port_rules.flatmap(lambda rules: st.tuples(st.just(rules), st.permutations(rules))), st.integers(1, 31))
def test_the_order_of_rules_for_one_host_does_not_matter(orders: tuple[list[Rule], list[Rule]], port: int) -> None:
    one, other = orders
    assert Ports(one).rule(port) == Ports(other).rule(port)


# --- many ---


def texts(book: RuleIndex, host: str) -> list[str | None]:
    """Those that fit, in order."""
    try:
        found = book.of_address(ip_address(host))
    except ValueError:
        found = book.of_name(host)
    return [ports.rule(80) for ports in found]


def test_the_closest_comes_first() -> None:
    rules = ["*", "*.com", "*.example.com", "api.example.com", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "::/0"]
    book = RuleIndex(map(parse_rule, rules))
    assert texts(book, "api.example.com") == ["api.example.com", "*.example.com", "*.com", "*"]
    assert texts(book, "example.com") == ["*.com", "*"]
    assert texts(book, "com") == ["*"]
    assert texts(book, "10.1.2.3") == ["10.1.2.3", "10.1.0.0/16", "10.0.0.0/8"]
    assert texts(book, "10.1.2.4") == ["10.1.0.0/16", "10.0.0.0/8"]
    assert texts(book, "11.0.0.1") == []
    assert texts(book, "::a01:203") == ["::/0"]
    assert [ports.rule(443) for ports in book.of_any()] == ["*"]


def test_an_empty_book_has_nothing() -> None:
    assert texts(RuleIndex([]), "example.com") == texts(RuleIndex([]), "10.0.0.1") == []
    assert list(RuleIndex([]).of_any()) == []


@pytest.mark.parametrize(
    "text",
    ["127.0.0.1:8123", "localhost:8123", "*.localhost:8123", "127.0.0.0/8:8123", "127.9.0.0/16:8123", "[::1]:8123",
     "[::ffff:127.0.0.1]:8123", "[64:ff9b::7f00:1]:8123", "[::/120]:8123", "ip6-localhost:8123", "fastclaw:8123"],
)  # fmt: skip
def test_a_rule_for_what_is_the_sandbox_itself_is_refused_with_what_to_write(text: str) -> None:
    """github/gh-aw#22939, NVIDIA/OpenShell#814: rules that silently cannot work."""
    with pytest.raises(BadHost, match=r"the sandbox itself; write 'host\.fastclaw\.internal:8123'"):
        refuse_oneself(parse_rule(text))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("*.fastclaw.internal:8123", "host.fastclaw.internal"),
        ("*.Docker.internal", "host.docker.internal"),
        ("*.containers.internal.", "host.containers.internal"),
    ],
)
def test_a_pattern_that_means_the_host_is_refused(text: str, name: str) -> None:
    with pytest.raises(BadHost, match=f"can never take effect: no pattern fits '{name}'"):
        refuse_oneself(parse_rule(text))


@pytest.mark.parametrize(
    "text",
    ["*", "*.internal", "0.0.0.0/0", "[::/0]", "10.0.0.0/8", "localhost.example", "host.fastclaw.internal:8123",
     "[2000::/3]"],
)  # fmt: skip
def test_a_rule_for_somebody_else_is_not(text: str) -> None:
    refuse_oneself(parse_rule(text))


@pytest.mark.parametrize(
    ("text", "ports"),
    [("localhost", "80,443"), ("::1", "80,443"), ("localhost:1-9,443", "1-9,443"), ("[::1]:*", "[*]")],
)
def test_the_ports_of_such_a_rule_are_kept(text: str, ports: str) -> None:
    with pytest.raises(BadHost, match=f"internal:{ports}'"):
        refuse_oneself(parse_rule(text))
