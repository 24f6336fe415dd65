"""The bounds of the network: the egress proxy, its names and log, bridges. Kept to as those of limits.py are."""

from fastclaw.limits import KIB, MIB

EGRESS_RULES = 10_000
"""Entries of `allow`, of `deny` and of `inject` each: a list of a whole organisation's hosts; deciding does not slow
down with it."""

EGRESS_RULE_BYTES = 300
"""One entry: a name has 253 bytes at most (RFC 1035, 2.3.4), a port range 11, and brackets."""

EGRESS_NAME_BYTES = 253
"""A host name: 255 bytes on the wire (RFC 1035, 2.3.4), of which the first length and the root's are not written."""

EGRESS_CONNECTIONS = 4_096
"""Default of `max_connections`: one for each of `MAX_PROCESSES`; a tunnel takes two descriptors while it is idle and
six while both directions flow."""

EGRESS_CONNECTIONS_PER_S = 5_000
"""Default of `max_connections_per_s`: more than the proxy opens on one core, so it bounds floods only."""

EGRESS_IDLE_MS = 900_000
"""Default of `idle_timeout_ms`: a long poll of an hour is rare, a tunnel forgotten by its program is not."""

EGRESS_CONNECT_MS = 10_000
"""Default of `connect_timeout_ms`, resolution included: three SYNs (tcp(7), tcp_syn_retries) and a retried query."""

EGRESS_HEAD_MS = 15_000
"""A client's request head, or the first bytes of a connection: a slower client is a slowloris."""

EGRESS_HEAD_BYTES = 32 * KIB
"""A request's line and headers: real ones with large cookies stay below 16 KiB; Go servers take 1 MiB."""

EGRESS_PHRASE_CHARS = 400
"""What the status line of a refusal says: a host name of 253 characters and the words around it."""

EGRESS_LOG_BYTES = 10 * MIB
"""Default of `log_max_bytes`: some 50 000 decisions before the file is rotated."""

EGRESS_SECRET_BYTES = 8 * KIB
"""An injected header's value: tokens with many claims have 4 KiB; servers take no more than 8 in one header."""

EGRESS_LOOKUPS = 128
"""Names of all environments being resolved at once, a thread each: the host's resolver makes one wait for 30 s where a
name server is dead (resolv.conf(5): three servers, two attempts of 5 s), and the other names shall not. One environment
alone gets half of them (egress/shares.py)."""

EGRESS_LOOKUPS_WAITING = 1_024
"""Names of an environment being resolved or waiting for it: 64 threads get through so many within `EGRESS_CONNECT_MS`,
at 0.6 s each."""

EGRESS_ADDRESSES = 32
"""Addresses of one name that are looked at: an answer over UDP holds some 30, and more are for load balancing."""

EGRESS_ANSWERS = 1_024
"""Resolved names that are kept, about 1 KB each."""

EGRESS_ANSWER_MS = 5_000
"""How long a resolved name is kept: a burst of requests costs one query, and a name that moves is followed soon."""

EGRESS_HOSTS = 4_096
"""Texts of hosts whose meaning is remembered, about 400 bytes each, for all environments."""

EGRESS_VERDICTS = 512
"""Verdicts of one environment's rules that are remembered, of hosts and of their addresses: about 600 bytes each, two
for a target. A program's packages and services are some dozens."""

EGRESS_ANSWERED = 8_192
"""Addresses that were given out for a name and are known again, about 300 bytes each; 1 000 names have so many."""

EGRESS_ANSWERED_MS = 3_600_000
"""How long such an address is known: clients use one for longer than its TTL, as keep-alive pools and JVMs do."""

EGRESS_UPSTREAM_LOOKUP_MS = 2_000
"""How long this host's resolver is waited for where a proxy outside can resolve as well: behind one, many names have no
address here, and some resolvers drop the question."""

EGRESS_NEXT_ADDRESS_MS = 250
"""Silence of an address before the next is tried too: RFC 8305 (section 5) recommends it."""

EGRESS_ROUTE_BYTES = 4 * KIB
"""The kernel's answer about one route: some 100 bytes of attributes."""

EGRESS_FRAME_BYTES = 4 * KIB
"""One frame between fastclaw and its egress proxy: a few words, or one line of text."""

EGRESS_LINE_CHARS = 500
"""A line that the egress proxy says: as JSON, with every character escaped, it fits into a frame."""

EGRESS_RESERVED_FILES = 64
"""Descriptors that the egress proxy's connections cannot take: for the listeners of containers that come later."""

EGRESS_CONNECTION_FILES = 2
"""Descriptors of a connection, to the client and to the server; its pipes are those of `TUNNEL_PIPES`."""

EGRESS_ENVIRONMENT_FILES = 8
"""Descriptors of an environment besides its connections: an epoll, a socket for the kernel's routes, counters, a log,
and four listeners. They come out of what all have for connections."""

EGRESS_EVENTS = 16
"""Sockets of one environment dealt with before those of the others have their turn: a millisecond or two for each that
has a full pipe's worth to move, so that what one environment moves holds up another's for some 30 ms at most."""

EGRESS_READY_MS = 20_000
"""From the egress proxy's start until it serves: 0.3 s on an idle machine; one that swaps takes seconds."""

EGRESS_TASKS_MS = 500
"""What cancelled tasks of the egress proxy may take to write down what they were about: twice, and with
`LOG_FLUSH_MS`, well within `EGRESS_EXIT_MS`, so that a disk that hangs does not get the proxy killed."""

EGRESS_EXIT_MS = 5_000
"""An egress proxy that has not ended what it has of an environment, or itself, by then is killed: half of
`SHUTDOWN_TIMEOUT_MS`."""

EGRESS_PROXY_PORT = 3_128
"""Where the proxy listens inside: the customary port of HTTP proxies (squid), which needs no privilege."""

TLS_HELLO_BYTES = 32 * KIB
"""A ClientHello: real ones with post-quantum key shares and a session ticket stay below 8 KiB."""

TLS_EARLY_BYTES = 64 * KIB
"""What a client may send between its first ClientHello and the one that it is asked for: early data, of which servers
take 16 KiB (OpenSSL's and nginx's default)."""

TLS_HELLO_RECORDS = 64
"""Records that one ClientHello may be spread over: clients use one or two; each piece is read from the first on."""

DNS_QUERY_BYTES = 4 * KIB
"""A query: its name has 255 bytes at most (RFC 1035, 2.3.4), and what EDNS adds (cookie, padding) a few hundred."""

DNS_PLAIN_BYTES = 512
"""An answer over UDP to a client that names no size of its own (RFC 1035, 2.3.4)."""

DNS_UDP_BYTES = 1_232
"""An answer over UDP, also to clients that take more: IPv6's least MTU of 1 280 without its headers, so never in
fragments."""

DNS_ANSWERS = 32
"""Addresses in one answer: clients try a few; it bounds how much larger than its query an answer can be."""

DNS_TTL_S = 30
"""How long a client may keep an answer: the host's resolver keeps the real time to live, and does not tell it."""

DNS_QUESTIONS = 256
"""Questions being answered: further ones are dropped, and asked again by their clients (resolv.conf(5), attempts)."""

DNS_QUESTIONS_PER_S = 2_000
"""New questions: a new connection takes two; more than a host's resolver answers, so it bounds floods only."""

DNS_BURST = 64
"""Questions or clients taken up before the loop has a turn: under a millisecond of work."""

DNS_CLIENTS = 64
"""Clients over TCP, which ask there what was too long for a datagram: few, and not for long."""

DNS_IDLE_MS = 10_000
"""A client over TCP that says nothing: "on the order of a few seconds" (RFC 7766, 6.2.3)."""

DNS_DROPPED_MS = 1_000
"""How often it is told that questions were dropped: a flood must not become one of the log."""

EGRESS_PART_MS = 2_000
"""How long a client that was told the last gets to read it and to close: a round trip, and a client under load."""

EGRESS_ACCEPT_BURST = 64
"""Connections accepted before the loop goes on: some milliseconds until each of them is a task."""

EGRESS_LEAVING = 256
"""Clients of all environments that are being told why they are not served, in a flood of them; further ones are closed
without a word. One environment alone gets half of them (egress/shares.py)."""

EGRESS_SWEEPS = 8
"""Looks at all tunnels within one `idle_timeout_ms`: an idle one lives an eighth longer at most."""

BRIDGE_TRIES = 64
"""Subnets tried for a bridge: of 42 752 even a host with hundreds of networks takes few; each try costs 10 ms."""

BRIDGE_BACKLOG = 1_024
"""Connections that wait at a bridge's listener: what a burst of agents opens at once, while the proxy comes up."""

BRIDGE_PROOF_MS = 2_500
"""How long a new container's first connection to the gateway may take: 0.2 ms measured; a lost SYN is sent again after
one second (tcp(7))."""

NFT_MS = 10_000
"""One transaction of nft: 5 to 10 ms measured; the kernel makes it wait for those of others."""

NETLINK_MS = 5_000
"""One answer of the kernel about an interface: microseconds; it is made to wait while others change theirs."""

NETLINK_POLL_MS = 1
"""Between two looks whether an interface passes packets: the kernel lets it a few milliseconds after it was set up."""

NETLINK_BYTES = 8 * KIB
"""An acknowledgement and the message that it answers: what the kernel itself takes for one (NLMSG_GOODSIZE)."""

TUNNEL_BUFFER_BYTES = 64 * KIB
"""One read that is copied: more is spliced, which costs two calls and no copy."""

TUNNEL_PIPE_BYTES = 1 * MIB
"""A pipe that tunnels splice through: the largest an unprivileged process may ask for (fs.pipe-max-size)."""

TUNNEL_PIPES = 256
"""Pipes that tunnels of all environments use at a time: each is held by a direction whose reader is slow; further ones
are copied. One environment alone gets half of them (egress/shares.py)."""

TUNNEL_SPARE_PIPES = 16
"""Pipes kept for the next that needs one: a bulk transfer takes and returns one at every burst."""

TUNNEL_BURST = 8
"""Steps of one direction before it gives the loop back: a full pipe is two, and a millisecond; others wait so long."""

TUNNEL_STREAM_BYTES = 8 * MIB
"""What a direction has to move without a pause to be taken for a stream: it lasts for milliseconds then, so that
another one at its end is nothing."""

TUNNEL_BATCH_BYTES = 512 * KIB
"""What a stream wakes the proxy for: half a pipe. Measured on loopback with two cores: on a busy machine some 15 % more
bytes a second than waking for each segment, on a quiet one as many; twice as much is nothing better."""

TUNNEL_BATCH_MS = 4
"""How often streams are looked at, for a rest that is less than a batch: at 1 ms, a loaded machine has them all look
paused (5 % fewer bytes a second)."""
