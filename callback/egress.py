"""Where callbacks may go: a client's URL is resolved once, every address is checked, and a checked one is connected to.

Refused unless allowed by configuration: everything that is not a public unicast address (private, loopback, link-local
with the metadata services, carrier-grade NAT, multicast, reserved, documentation), also when it hides in an IPv6
address (mapped, 6to4, NAT64, Teredo). Odd spellings (`127.1`, `0x7f.1`) need no rule: what they resolve to is checked.
"""

import asyncio
import ipaddress
import socket
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from yarl import URL

from callback.errors import EgressRefused

RESOLVE_TIMEOUT_S = 3.0
LOOKUPS_OF_ONE_HOST = 4
"""How many threads the resolution of one host name may hold, however many ask for it."""
MAX_URL_LENGTH = 2048

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Awaitable[list[str]]]

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_IPV4_COMPATIBLE = ipaddress.ip_network("::/96")
# Resolution blocks a thread for as long as DNS takes; a pool of its own keeps slow names from other work.
_threads = ThreadPoolExecutor(max_workers=64, thread_name_prefix="resolve")
_NEVER_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # IETF protocol assignments; one cloud has its metadata service here
        "192.88.99.0/24",  # the deprecated 6to4 relays (RFC 7526)
        "168.63.129.16/32",  # one cloud's host services, at a public address that is reachable from inside only
        "2002::/16",  # 6to4, deprecated with its relays
        "64:ff9b:1::/48",  # local-use NAT64 (RFC 8215)
        "3fff::/20",  # documentation (RFC 9637)
        "5f00::/16",  # segment routing (RFC 9602)
        "fec0::/10",  # site-local (RFC 3879)
    )
)
"""What Python's `ipaddress` takes for global, in some of the versions that we support."""


@dataclass(slots=True, eq=False)
class _Lookup:
    """A resolution that waits for a thread or holds one, with how many wait for it."""

    found: Future[list[str]]
    waiting: int = 0


_lookups: defaultdict[str, list[_Lookup]] = defaultdict(list)
_lookups_lock = threading.RLock()
"""Re-entrant: cancelling a lookup ends it within the same call."""


async def system_resolver(host: str, port: int) -> list[str]:
    """Return the addresses of `host` as the operating system resolves it.

    A name that has many resolutions in flight gets no further one: its newest answers all who ask.
    """
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def tell(_: object) -> None:
        with suppress(RuntimeError):  # The loop was closed: nobody waits any more.
            loop.call_soon_threadsafe(done.set)

    lookup = _join_lookup(host, port)
    lookup.found.add_done_callback(tell)
    try:
        await done.wait()
    finally:
        _leave_lookup(lookup)
    return lookup.found.result()


def _join_lookup(host: str, port: int) -> _Lookup:
    with _lookups_lock:
        in_flight = _lookups[host]
        if len(in_flight) < LOOKUPS_OF_ONE_HOST:
            lookup = _Lookup(_threads.submit(_addresses, host, port))
            in_flight.append(lookup)
            lookup.found.add_done_callback(lambda _: _end_lookup(host, lookup))
        else:
            lookup = in_flight[-1]
        lookup.waiting += 1
        return lookup


def _leave_lookup(lookup: _Lookup) -> None:
    with _lookups_lock:
        lookup.waiting -= 1
        if not lookup.waiting:
            lookup.found.cancel()  # It works while no thread has taken it up.


def _end_lookup(host: str, lookup: _Lookup) -> None:
    with _lookups_lock:
        _lookups[host].remove(lookup)
        if not _lookups[host]:
            del _lookups[host]


def _addresses(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True, slots=True)
class Target:
    """A checked destination: connect to one of `addresses`, in their order, and speak to `url.host`."""

    url: URL
    addresses: tuple[str, ...]


class EgressPolicy:
    """The rule which addresses callbacks may be sent to."""

    def __init__(
        self,
        *,
        allow_loopback: bool = False,
        allowed_networks: tuple[str, ...] = (),
        resolver: Resolver = system_resolver,
    ) -> None:
        self._allow_loopback = allow_loopback
        self._networks = tuple(ipaddress.ip_network(network) for network in allowed_networks)
        self._resolve = resolver

    def parse(self, url: str) -> URL:
        """Return the URL if its form is acceptable. Raises `EgressRefused`."""
        if len(url) > MAX_URL_LENGTH:
            raise EgressRefused(f"The URL is longer than {MAX_URL_LENGTH} characters.")
        if any(not character.isprintable() for character in url):
            raise EgressRefused("The URL holds a character that cannot be shown.")
        try:
            parsed = URL(url)
            host, port = parsed.raw_host, parsed.port
        except ValueError:
            raise EgressRefused(
                "The URL cannot be read. Use http://host[:port]/path or https://host[:port]/path."
            ) from None
        if parsed.scheme not in {"http", "https"}:
            raise EgressRefused("The URL must begin with http:// or https://.")
        if not host or not port:
            raise EgressRefused("The URL must name a host, and a port between 1 and 65535 if it names one.")
        if parsed.user is not None or parsed.password is not None:
            raise EgressRefused("The URL must not carry a user name or password. Use callback_secret instead.")
        return _as_written(url, parsed)

    async def check(self, url: str) -> Target:
        """Resolve the URL's host and return a destination that may be connected to. Raises `EgressRefused`."""
        parsed = self.parse(url)
        host = str(parsed.raw_host)
        # What is an address already needs no resolver, whose threads may all be held by slow names.
        addresses = _literal(host) or await self._resolved(host, parsed.port or 80)
        allowed = tuple(address for address in addresses if self.allows(address))
        if allowed:
            return Target(parsed, allowed)
        raise EgressRefused(
            f"The host {host!r} is at an address that this service does not send to. "
            "The operator can allow its network with callback_allowed_networks."
        )

    async def _resolved(self, host: str, port: int) -> list[str]:
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                return await self._resolve(host, port)
        except TimeoutError:
            raise EgressRefused(f"The host {host!r} did not resolve within {RESOLVE_TIMEOUT_S:g} s.") from None
        except (OSError, ValueError):
            raise EgressRefused(f"The host {host!r} does not resolve.") from None

    def allows(self, address: str) -> bool:
        """Tell whether `address` (textual, IPv4 or IPv6) may be connected to."""
        try:
            ip = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        return all(self._allows_one(part) for part in _unwrapped(ip))

    def _allows_one(self, ip: IpAddress) -> bool:
        if any(ip in network for network in self._networks if network.version == ip.version):
            return True
        if ip.is_loopback:
            return self._allow_loopback
        if any(ip in network for network in _NEVER_PUBLIC if network.version == ip.version):
            return False
        return ip.is_global and not ip.is_multicast and not ip.is_reserved and not ip.is_unspecified


def _literal(host: str) -> list[str] | None:
    """Return the address that `host` spells out, if it is one."""
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        return None


def _as_written(url: str, parsed: URL) -> URL:
    """Return the URL with path and query as the client wrote them: a signature in it may cover every character."""
    if not url.isascii() or " " in url:
        return parsed
    written = URL(url, encoded=True)
    same = (written.scheme, written.raw_host, written.port) == (parsed.scheme, parsed.raw_host, parsed.port)
    return written if same else parsed


def receiver_of(url: str) -> str:
    """Return host and port of a URL in one spelling: what shares the capacity that one receiver may use."""
    try:
        parsed = URL(url)
        return f"{(parsed.raw_host or '').lower().rstrip('.')}:{parsed.port}"
    except ValueError:
        return url


def _unwrapped(ip: IpAddress) -> tuple[IpAddress, ...]:
    """Return the address itself, or the IPv4 addresses that it stands for."""
    if isinstance(ip, ipaddress.IPv4Address):
        return (ip,)
    if ip.ipv4_mapped is not None:
        return (ip.ipv4_mapped,)
    if ip.sixtofour is not None:
        return (ip, ip.sixtofour)
    if ip.teredo is not None:
        return (ip, *ip.teredo)
    if ip in _NAT64 or (ip in _IPV4_COMPATIBLE and int(ip) > 1):
        return (ip, ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    return (ip,)
