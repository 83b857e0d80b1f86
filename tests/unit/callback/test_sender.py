"""Sending a callback: a checked address is what is connected to, under the name that was checked."""

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from yarl import URL

from callback.egress import EgressPolicy, Target
from callback.sender import Message, NoReply, Reply, Sender
from tests.unit.callback.raw_receiver import raw_receiver

MESSAGE = Message({"Content-Type": "text/plain"}, b"It broke.", sent_at=1_900_000_000.0)


async def post(target: Target, tls: ssl.SSLContext | None = None) -> Reply:
    async with Sender(tls) as sender:
        return await sender.post(MESSAGE, target, timeout_s=10)


async def test_the_checked_address_is_connected_to_and_the_host_keeps_its_name() -> None:
    async with raw_receiver() as receiver:
        # The name would lead elsewhere, and cannot even be resolved.
        url = f"http://public.example:{receiver.port}/callback"
        asked: list[str] = []

        async def resolve(host: str, _port: int) -> list[str]:
            asked.append(host)
            return ["127.0.0.1"]

        target = await EgressPolicy(resolver=resolve, allow_loopback=True).check(url)

        reply = await post(target)

    assert reply.accepted
    assert receiver.requests[0].header("Host") == f"public.example:{receiver.port}"
    assert asked == ["public.example"]


async def test_the_next_address_is_tried_when_the_first_does_not_answer() -> None:
    async with raw_receiver() as receiver:
        url = URL(f"http://dual.example:{receiver.port}/callback")

        reply = await post(Target(url, ("::1", "127.0.0.2", "127.0.0.1")))

    assert reply.accepted
    assert receiver.connections == 1


async def test_nothing_is_sent_when_the_time_is_over() -> None:
    async with raw_receiver() as receiver, Sender() as sender:
        target = Target(URL(receiver.url), ("127.0.0.1",))
        with pytest.raises(NoReply, match="time for this attempt was over"):
            await sender.post(MESSAGE, target, timeout_s=0)

    assert receiver.connections == 0


async def test_no_second_address_is_tried_once_something_was_sent() -> None:
    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with raw_receiver(hang_up, host="0.0.0.0") as receiver:  # noqa: S104 - every loopback address
        url = URL(f"http://dual.example:{receiver.port}/callback")
        with pytest.raises(NoReply):
            await post(Target(url, ("127.0.0.1", "127.0.0.2")))

    assert receiver.peers == ["127.0.0.1"]


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the server's and the client's side of a certificate for `name`."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / "certificate.pem"
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(private + signed.public_bytes(encoding))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    return server, ssl.create_default_context(cafile=str(file))


async def test_tls_is_spoken_with_the_name_and_not_with_the_address(tmp_path: Path) -> None:
    server, client = certificate(tmp_path, "public.example")
    asked: list[str | None] = []
    server.sni_callback = lambda _socket, name, _context: asked.append(name)
    async with raw_receiver(tls=server) as receiver:
        url = URL(f"https://public.example:{receiver.port}/callback")

        reply = await post(Target(url, ("127.0.0.1",)), client)

    assert reply.accepted
    assert asked == ["public.example"]
    assert receiver.requests[0].header("Host") == f"public.example:{receiver.port}"


async def test_a_certificate_of_another_name_is_refused(tmp_path: Path) -> None:
    server, client = certificate(tmp_path, "other.example")
    async with raw_receiver(tls=server) as receiver:
        url = URL(f"https://public.example:{receiver.port}/callback")

        with pytest.raises(NoReply):
            await post(Target(url, ("127.0.0.1",)), client)

    assert receiver.requests == []


async def test_an_untrusted_certificate_is_refused(tmp_path: Path) -> None:
    server, _ = certificate(tmp_path, "public.example")
    async with raw_receiver(tls=server) as receiver:
        url = URL(f"https://public.example:{receiver.port}/callback")

        with pytest.raises(NoReply):
            await post(Target(url, ("127.0.0.1",)))

    assert receiver.requests == []
