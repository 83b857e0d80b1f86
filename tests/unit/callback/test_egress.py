"""Where callbacks may go. Nothing here is resolved over a network: the resolver is the test's own."""

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from callback.egress import LOOKUPS_OF_ONE_HOST, EgressPolicy, receiver_of, system_resolver
from callback.errors import EgressRefused
from tests.unit.callback.tracker_kit import BOUND_S

PUBLIC = "93.184.215.14"


class Names:
    """A resolver that knows what it was told, records what it was asked, and reads numbers as libc does."""

    def __init__(self, **names: Sequence[str]) -> None:
        self._names = {name.replace("_", "."): list(addresses) for name, addresses in names.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, _port: int) -> list[str]:
        self.asked.append(host)
        if host in self._names:
            return self._names[host]
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            pass
        try:
            return [socket.inet_ntoa(socket.inet_aton(host))]  # 127.1, 0x7f.1, 017700000001, 2130706433
        except OSError:
            raise socket.gaierror(socket.EAI_NONAME, "unknown") from None


HOSTILE = [
    # this machine
    "http://127.0.0.1/",
    "http://127.0.0.1:8091/jobs",
    "http://127.1/",
    "http://127.255.255.254/",
    "http://0177.0.0.1/",
    "http://0x7f.0.0.1/",
    "http://0x7f000001/",
    "http://2130706433/",
    "http://017700000001/",
    "http://0/",
    "http://0.0.0.0/",
    "http://0.1.2.3/",
    "http://[::1]/",
    "http://[::]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::127.0.0.1]/",
    "http://[64:ff9b::127.0.0.1]/",
    "http://[64:ff9b:1::7f00:1]/",
    "http://[2002:7f00:1::]/",
    "http://[2001:0:7f00:1::80ff:fffe]/",
    "http://localhost/",
    "http://LOCALHOST/",
    "http://localhost./",
    "http://127.0.0.1./",
    "http://127.0.0.1\u3002/",
    "http://１２７.0.0.1/",  # noqa: RUF001 - full-width digits
    "http://①②⑦.0.0.1/",
    "http://127。0。0。1/",
    # metadata services
    "http://169.254.169.254/latest/meta-data/",
    "http://0xA9FEA9FE/",
    "http://2852039166/",
    "http://169.254.43518/",
    "http://[::ffff:169.254.169.254]/",
    "http://[fe80::1]/",
    "http://[fd00:ec2::254]/",
    "http://100.100.100.200/",
    "http://192.0.0.192/",
    "http://168.63.129.16/",
    "http://metadata.internal/",
    # private and special networks
    "http://10.0.0.1/",
    "http://10.255.255.255/",
    "http://172.16.0.1/",
    "http://172.17.0.1/",
    "http://172.31.255.255/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://198.18.0.1/",
    "http://192.0.2.1/",
    "http://198.51.100.1/",
    "http://203.0.113.1/",
    "http://192.88.99.1/",
    "http://224.0.0.1/",
    "http://239.255.255.250:1900/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://[fc00::1]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
    "http://[100::1]/",
    "http://[2001:db8::1]/",
    "http://[3fff::1]/",
    "http://[5f00::1]/",
    "http://[::ffff:10.0.0.1]/",
    "http://[2002:a00:1::1]/",
    "http://[64:ff9b::10.0.0.1]/",
    "http://intranet/",
    # URLs that say one thing to one reader and another to the next
    "http://public.example@127.0.0.1/",
    "http://127.0.0.1@public.example/",
    "http://public.example:80@127.0.0.1/",
    "http://:secret@public.example/",
    "http://public.example\\@127.0.0.1/",
    "http://127.0.0.1\\@public.example/",
    "http://public.example#@127.0.0.1:99999/",
    "http://127.0.0.1%2f@public.example/",
    "http://public.example:0/",
    "http://public.example:99999/",
    "http://public.example:80:80/",
    "http://public.example\r\nHost: intranet/",
    "http://public.example/\r\nX-Injected: 1",
    "http://public.example/\x00",
    "http://public\texample/",
    "http://public example/",
    "http://public.example\u202e/",
    "http://unknown.example/",
    "http://" + "a" * 300 + ".example/",
    "http://public.example/" + "a" * 2048,
    "http://[public.example]/",
    "http://[::1",
    "http://[fe80::1%25eth0]/",
    "http://",
    "http:///path",
    "http:public.example",
    "//public.example/",
    "public.example",
    "",
    # other protocols
    "file:///etc/passwd",
    "ftp://public.example/",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "unix:///var/run/docker.sock",
    "javascript:alert(1)",
    "data:text/plain,hello",
    "ws://public.example/",
]


@pytest.fixture
def names() -> Names:
    return Names(
        public_example=[PUBLIC],
        localhost=["::1", "127.0.0.1"],
        metadata_internal=["169.254.169.254"],
        intranet=["10.1.2.3"],
    )


@pytest.mark.parametrize("url", HOSTILE, ids=[ascii(url)[:60] for url in HOSTILE])
async def test_a_hostile_address_is_refused(names: Names, url: str) -> None:
    if url == "http://public.example#@127.0.0.1:99999/":
        # Everything after the # is a fragment, to every reader: what is connected to is public.
        assert (await EgressPolicy(resolver=names).check(url)).addresses == (PUBLIC,)
        return
    with pytest.raises(EgressRefused) as refusal:
        await EgressPolicy(resolver=names).check(url)

    assert str(refusal.value)[0].isupper()
    assert str(refusal.value).endswith(".")


@pytest.mark.parametrize("url", HOSTILE, ids=[ascii(url)[:60] for url in HOSTILE])
async def test_permission_for_loopback_opens_nothing_else(names: Names, url: str) -> None:
    try:
        target = await EgressPolicy(resolver=names, allow_loopback=True).check(url)
    except EgressRefused:
        return
    for address in target.addresses:
        ip = ipaddress.ip_address(address)
        mapped = getattr(ip, "ipv4_mapped", None) or ip
        assert mapped.is_loopback or address == PUBLIC


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://public.example/callback", PUBLIC),
        ("https://public.example:8443/callback?x=1", PUBLIC),
        ("http://PUBLIC.example/", PUBLIC),
        (f"http://{PUBLIC}/", PUBLIC),
        ("http://[2606:2800:21f:cb07:6820:80da:af6b:8b2c]/", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"),
        ("http://11.0.0.1/", "11.0.0.1"),
        ("http://172.32.0.1/", "172.32.0.1"),
        ("http://192.0.1.1/", "192.0.1.1"),
        ("http://192.169.0.1/", "192.169.0.1"),
    ],
)
async def test_public_addresses_are_allowed(names: Names, url: str, address: str) -> None:
    assert (await EgressPolicy(resolver=names).check(url)).addresses == (address,)


async def test_a_name_is_resolved_once(names: Names) -> None:
    await EgressPolicy(resolver=names).check("http://public.example/")

    assert names.asked == ["public.example"]


async def test_of_mixed_answers_only_the_allowed_addresses_are_used() -> None:
    names = Names(mixed_example=["10.0.0.1", PUBLIC, "::1", "169.254.169.254", "8.8.8.8"])

    target = await EgressPolicy(resolver=names).check("http://mixed.example/")

    assert target.addresses == (PUBLIC, "8.8.8.8")


async def test_a_name_with_no_allowed_address_is_refused() -> None:
    names = Names(mixed_example=["10.0.0.1", "::1", "not an address", ""], empty_example=[])

    for url in ("http://mixed.example/", "http://empty.example/"):
        with pytest.raises(EgressRefused):
            await EgressPolicy(resolver=names).check(url)


async def test_networks_can_be_allowed_one_by_one(names: Names) -> None:
    policy = EgressPolicy(resolver=names, allowed_networks=("172.17.0.1/32", "fd00:1::/64"))

    assert (await policy.check("http://172.17.0.1:8000/")).addresses == ("172.17.0.1",)
    assert (await policy.check("http://[fd00:1::5]/")).addresses == ("fd00:1::5",)
    assert policy.allows("::ffff:172.17.0.1")
    for url in ("http://172.17.0.2/", "http://127.0.0.1/", "http://[fd00:2::5]/"):
        with pytest.raises(EgressRefused):
            await policy.check(url)


async def test_a_name_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callback.egress.RESOLVE_TIMEOUT_S", 0.05)

    async def slow(_host: str, _port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(EgressRefused, match="did not resolve within"):
        await EgressPolicy(resolver=slow).check("http://public.example/")


@pytest.mark.parametrize("error", [socket.gaierror(-2, "unknown"), UnicodeError("label too long"), ValueError("null")])
async def test_whatever_resolving_raises_is_a_refusal(error: Exception) -> None:
    async def broken(_host: str, _port: int) -> list[str]:
        raise error

    with pytest.raises(EgressRefused, match="does not resolve"):
        await EgressPolicy(resolver=broken).check("http://public.example/")


async def test_the_system_resolver_reads_numbers_without_a_network() -> None:
    assert await system_resolver("127.1", 80) == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("url", "address"), [(f"http://{PUBLIC}/", PUBLIC), ("http://[2606:2800:21f::8b2c]/", "2606:2800:21f::8b2c")]
)
async def test_an_address_needs_no_resolver(url: str, address: str) -> None:
    names = Names()

    assert (await EgressPolicy(resolver=names).check(url)).addresses == (address,)
    with pytest.raises(EgressRefused, match="does not send to"):
        await EgressPolicy(resolver=names).check("http://10.0.0.1/")
    assert names.asked == []


class SlowDns:
    """A `getaddrinfo` that answers when it is told, and counts what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer = threading.Event()

    def __call__(self, host: str, port: int, **_: Any) -> list[Any]:
        self.asked.append(host)
        self.answer.wait(BOUND_S)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (PUBLIC, port))]


@pytest.fixture
def slow_dns(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDns]:
    """Slow DNS behind a pool of five threads."""
    dns = SlowDns()
    with ThreadPoolExecutor(5) as threads:
        monkeypatch.setattr("callback.egress._threads", threads)
        monkeypatch.setattr("callback.egress.socket.getaddrinfo", dns)
        yield dns
        dns.answer.set()


async def test_a_slow_name_holds_only_its_share_of_the_threads_and_answers_all_who_ask(slow_dns: SlowDns) -> None:
    asking = [asyncio.create_task(system_resolver("slow.example", 80)) for _ in range(20)]
    await asyncio.sleep(0)
    other = asyncio.create_task(system_resolver("other.example", 80))
    async with asyncio.timeout(BOUND_S):
        while "other.example" not in slow_dns.asked:  # noqa: ASYNC110 - a thread tells nobody that it began
            await asyncio.sleep(0.001)
    assert slow_dns.asked.count("slow.example") == LOOKUPS_OF_ONE_HOST

    slow_dns.answer.set()

    assert await asyncio.gather(*asking, other) == [[PUBLIC]] * 21
    assert slow_dns.asked.count("slow.example") == LOOKUPS_OF_ONE_HOST


async def test_a_name_is_resolved_anew_when_its_resolutions_have_ended(slow_dns: SlowDns) -> None:
    slow_dns.answer.set()
    for _ in range(LOOKUPS_OF_ONE_HOST + 2):
        await system_resolver("public.example", 80)

    assert len(slow_dns.asked) == LOOKUPS_OF_ONE_HOST + 2


async def test_who_gives_up_spoils_no_resolution_for_others_and_leaves_none_waiting_for_nobody(
    slow_dns: SlowDns,
) -> None:
    asking = [asyncio.create_task(system_resolver("slow.example", 80)) for _ in range(6)]
    given_up = [asyncio.create_task(system_resolver(f"n{n}.example", 80)) for n in range(9)]
    await asyncio.sleep(0)
    for task in (asking[-1], *given_up):
        task.cancel()
    await asyncio.gather(asking[-1], *given_up, return_exceptions=True)

    slow_dns.answer.set()

    assert await asyncio.gather(*asking[:-1]) == [[PUBLIC]] * 5
    assert len([host for host in slow_dns.asked if host != "slow.example"]) <= 1


@pytest.mark.parametrize(
    "url",
    [
        "http://public.example/a%2Fb?token=a%2Bb%2F%3D&x=%7e#part",
        "http://public.example/a/../b;v=1?q=a'b",
    ],
)
async def test_path_and_query_stay_as_the_client_wrote_them(names: Names, url: str) -> None:
    target = await EgressPolicy(resolver=names).check(url)

    assert str(target.url) == url
    assert target.url.with_host(PUBLIC).raw_path_qs == url.removeprefix("http://public.example").partition("#")[0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://a.example/x", "http://a.example/y"),
        ("http://a.example?1", "http://a.example?2"),
        ("http://A.example/", "http://a.example./"),
        ("http://a.example/", "http://a.example:80/"),
    ],
)
def test_one_receiver_has_one_name(one: str, other: str) -> None:
    assert receiver_of(one) == receiver_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("http://a.example/", "http://b.example/"), ("http://a.example/", "https://a.example/")],
)
def test_two_receivers_have_two_names(one: str, other: str) -> None:
    assert receiver_of(one) != receiver_of(other)
