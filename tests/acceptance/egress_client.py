"""What programs inside try, to get out: run as `python3 -c THIS WORD ARGUMENT…` in a container; prints one JSON value.

Knows the standard library only, since the container has nothing else. A failed attempt is `{"error": NAME}`.
"""

import concurrent.futures
import errno
import json
import os
import socket
import ssl
import struct
import sys
import urllib.error
import urllib.request
from typing import Any

PATIENCE_S = 1.0
"""For what is dropped without an answer: everything here is on one machine, where answers take milliseconds."""


def proxy() -> tuple[str, int]:
    host, _, port = os.environ["http_proxy"].removeprefix("http://").partition(":")
    return host, int(port)


def connect(host: str, port: str | int, family: int = socket.AF_INET) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.settimeout(PATIENCE_S)
    sock.connect((host, int(port)))
    return sock


def read_all(sock: socket.socket, most: int = 1 << 20) -> bytes:
    data = b""
    try:
        while len(data) < most and (part := sock.recv(65536)):
            data += part
    except (TimeoutError, ConnectionResetError):
        pass
    return data


def answer(data: bytes) -> Any:
    """Status and reason of an HTTP answer."""
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
    status = int(lines[0].split(" ")[1]) if lines[0].startswith("HTTP/") else None
    return {"status": status, "reason": fields.get("x-fastclaw-reason"), "body": body[:4096].decode("latin-1")}


def fetch(url: str, *headers: str) -> Any:
    """As a program that honours proxy variables."""
    handler = urllib.request.HTTPSHandler(context=ssl._create_unverified_context())
    opener = urllib.request.build_opener(handler)
    request = urllib.request.Request(url, headers=dict(header.split("=", 1) for header in headers))
    try:
        with opener.open(request, timeout=10) as response:
            body = response.read()
            return {"status": response.status, "bytes": len(body), "body": body[:4096].decode("latin-1")}
    except urllib.error.HTTPError as error:
        return {"status": error.code, "reason": error.headers.get("X-Fastclaw-Reason"), "body": error.read().decode()}


def plain(host: str, port: str, name: str | None = None, path: str = "/") -> Any:
    """As a program that ignores them: HTTP straight to an address or a name."""
    with connect(host, port) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {name or host}\r\nConnection: close\r\n\r\n".encode())
        return answer(read_all(sock))


def tls(host: str, port: str, name: str, path: str = "/") -> Any:
    """The same over TLS; an empty name sends no SNI."""
    context = ssl._create_unverified_context()
    with connect(host, port) as sock, context.wrap_socket(sock, server_hostname=name or None) as secure:
        secure.sendall(f"GET {path} HTTP/1.1\r\nHost: {name or host}\r\nConnection: close\r\n\r\n".encode())
        return answer(read_all(secure))


def tcp(host: str, port: str, text: str = "hello") -> Any:
    """Connect and say something: what comes back."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with connect(host, port, family) as sock:
        sock.sendall(text.encode())
        return {"connected": True, "data": read_all(sock).decode("latin-1")}


def udp(host: str, port: str, text: str = "hello") -> Any:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect((host, int(port)))
        sock.send(text.encode())
        return {"data": sock.recv(65536).decode("latin-1")}


def unix(path: str) -> Any:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(path)
        return {"connected": True}


def ping(host: str) -> Any:
    """An ICMP echo by a datagram socket, else by a raw one."""
    echo = struct.pack("!BBHHH", 8, 0, 0xF7FF, 0, 0)
    for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
        try:
            with socket.socket(socket.AF_INET, kind, socket.IPPROTO_ICMP) as sock:
                sock.settimeout(PATIENCE_S)
                sock.sendto(echo, (host, 0))
                return {"data": len(sock.recv(1024))}
        except PermissionError:
            continue
    raise PermissionError(errno.EPERM, "no ICMP socket")


def via(target: str, *more: str) -> Any:
    """CONNECT to it through the proxy; `more` is sent once that is answered, and what comes back told."""
    with connect(*proxy()) as sock:
        sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        said = answer(sock.recv(65536))
        if said["status"] == 200 and more:
            sock.sendall(more[0].encode("latin-1"))
            said["body"] = read_all(sock).decode("latin-1")
        return said


def vias(*targets: str) -> Any:
    return {target: via(target) for target in targets}


def fronted(target: str, name: str) -> Any:
    """TLS with another server's name inside a tunnel."""
    with connect(*proxy()) as sock:
        sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        said = answer(sock.recv(65536))
        if said["status"] != 200:
            return said
        with ssl._create_unverified_context().wrap_socket(sock, server_hostname=name) as secure:
            secure.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            return answer(read_all(secure))


def raw(*pieces: str) -> Any:
    """Bytes (latin-1, with backslash escapes) to the proxy, as they are: what comes back until it closes."""
    with connect(*proxy()) as sock:
        for piece in pieces:
            sock.sendall(piece.encode("latin-1").decode("unicode_escape").encode("latin-1"))
        return answer(read_all(sock))


def resolve(name: str) -> Any:
    return sorted({info[4][0] for info in socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)})


def dns(server: str, name: str, over: str = "udp") -> Any:
    """A question of our own making to a server of our own choice: response code and number of answers."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    query = struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", 1, 1)
    if over == "tcp":
        with connect(server, 53) as sock:
            sock.sendall(struct.pack("!H", len(query)) + query)
            data = sock.recv(65536)[2:]
    else:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(PATIENCE_S)
            sock.sendto(query, (server, 53))
            data = sock.recv(65536)
    return {"rcode": data[3] & 15, "answers": struct.unpack("!H", data[6:8])[0]}


def privileged() -> Any:
    """What would take rights: sockets below IP, a new network namespace, a route, the proxy's own port."""

    def route() -> None:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
            route = struct.pack("=8BI", socket.AF_INET, 0, 0, 0, 254, 4, 0, 1, 0) + struct.pack("=2HI", 8, 4, 1)
            sock.send(struct.pack("=I2H2I", 16 + len(route), 24, 5, 1, 0) + route)
            code = struct.unpack("=i", sock.recv(4096)[16:20])[0]
            if code:
                raise OSError(-code, "netlink")

    def steal(address: str) -> None:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((address, proxy()[1]))
            sock.listen()

    def namespace() -> None:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(0x40000000):
            raise OSError(ctypes.get_errno(), "unshare")

    attempts = {
        "packet": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0003).close(),
        "raw": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).close(),
        "route": route,
        "namespace": namespace,
        "steal loopback": lambda: steal(proxy()[0]),
        "steal any": lambda: steal("0.0.0.0"),
    }
    return {name: outcome(attempt) for name, attempt in attempts.items()}


def outcome(attempt: Any) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    return "done"


def broadcast(address: str, port: str) -> Any:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        return {"sent": sock.sendto(b"hello", (address, int(port)))}


def abstract(name: str) -> Any:
    return unix(f"\0{name}")


def listen() -> Any:
    """Serve on all addresses until the input ends; says where."""
    with socket.create_server(("0.0.0.0", 8000)):
        addresses = [line.split()[3] for line in os.popen("ip -4 -o addr show scope global")]
        print(json.dumps([address.partition("/")[0] for address in addresses]), flush=True)  # noqa: T201 - it is asked by its stdout
        sys.stdin.read()
    return "over"


def own(*names: str) -> Any:
    """How many answers a server on all of its addresses gives under these names, to a client that heeds NO_PROXY."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:

        def serve() -> None:
            for _ in names:
                with server.accept()[0] as client:
                    client.recv(65536)
                    client.sendall(b"HTTP/1.1 204 OK\r\nConnection: close\r\n\r\n")

        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            thread.submit(serve)
            urls = [f"http://{name}:{server.getsockname()[1]}/" for name in names]
            return sum(urllib.request.urlopen(url, timeout=5).status == 204 for url in urls)


def many(text: str) -> Any:
    """Several attempts at once, each a word with its arguments: what has come of each."""
    attempts = json.loads(text)
    with concurrent.futures.ThreadPoolExecutor(len(attempts)) as threads:
        return list(threads.map(lambda words: attempt(*map(str, words)), attempts))


def attempt(word: str, *arguments: str) -> Any:
    try:
        return WORDS[word](*arguments)
    except socket.gaierror as error:
        return {"error": "gaierror", "text": str(error)}
    except OSError as error:
        return {"error": errno.errorcode.get(error.errno or 0, type(error).__name__), "text": str(error)}


def routes() -> Any:
    with open("/proc/net/route") as file:
        devices = sorted({line.split()[0] for line in file.readlines()[1:]})
    return {"devices": sorted(os.listdir("/sys/class/net")), "routed": devices}


def environment() -> Any:
    return dict(os.environ)


WORDS = {one.__name__: one for one in (
    fetch, plain, tls, tcp, udp, unix, ping, via, vias, fronted, raw, resolve, dns, privileged, broadcast, abstract,
    listen, own, many, routes, environment
)}  # fmt: skip

if __name__ == "__main__":
    print(json.dumps(attempt(*sys.argv[1:])))  # noqa: T201 - what it was started for
