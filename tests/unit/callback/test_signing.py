"""Signatures of callbacks, checked by those who know nothing of how they are made."""

import base64
import time

import pytest

from callback.schema import signing_key
from callback.signing import Signer, secret_bytes
from stress.callback_server import CallbackServer
from stress.receiver.signatures import SignatureVerdict, SignatureVerifier, SignedHeaders
from tests.unit.callback.tracker_kit import PNG, Desk, StartDesk

NOW = 1614265330
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def signer(seed: bytes) -> Signer:
    return Signer("whsk_" + base64.b64encode(seed).decode())


def test_the_hmac_is_that_of_the_published_example() -> None:
    # From the test of the reference implementation, github.com/standard-webhooks/standard-webhooks.
    _, hmac = signer(bytes(32)).sign("msg_p5jXN8AQM9LWM0D4loKWxJek", NOW, b'{"test": 2432232314}', SECRET).split(" ")
    assert hmac == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_public_key_is_that_of_the_published_example() -> None:
    # RFC 8032, 7.1, test 1.
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    assert signer(seed).public_key == "whpk_" + base64.b64encode(public).decode()


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, SignatureVerdict.RIGHT),
        ({"body": b"other"}, SignatureVerdict.WRONG),
        ({"webhook_id": "msg_2"}, SignatureVerdict.WRONG),
        ({"timestamp": str(NOW + 1)}, SignatureVerdict.WRONG),
    ],
)
def test_nothing_that_is_signed_can_be_changed(change: dict[str, object], verdict: SignatureVerdict) -> None:
    ours = signer(bytes(range(32)))
    sent = {"webhook_id": "msg_1", "timestamp": str(NOW), "signature": ours.sign("msg_1", NOW, b"body", SECRET)}
    changed = {**change}
    body = changed.pop("body", b"body")
    for keys in ({"public_key": ours.public_key}, {"signing_secret": SECRET}):
        verifier = SignatureVerifier(**keys, clock=lambda: NOW)
        assert verifier.verdict(SignedHeaders(**sent | changed), body) is verdict  # type: ignore[arg-type]


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_%%", "whsec_c2hvcnQ=", SECRET.removeprefix("whsec_")])
def test_a_secret_of_another_form_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(ValueError, match="24 to 64 bytes in base64") as refused:
        secret_bytes(secret)
    assert len(secret) <= len("whsec_") or secret not in str(refused.value)


async def delivered(desk: Desk, receiver: CallbackServer, content: bytes, **callback: str) -> None:
    await desk.submit(callback_url=receiver.callback_url, **callback)
    await desk.complete(await desk.claim_one(), content)
    view = await desk.until_settled()
    assert view.delivery is not None
    assert view.delivery.state == "delivered", view.delivery


@pytest.mark.parametrize("size", [100, 3_000_000])
async def test_a_callback_is_signed_over_the_bytes_that_arrive(desk: Desk, size: int) -> None:
    public_key = (await desk.tracker.health()).public_key
    # The receiver compares with its own clock.
    desk.clock.set_wall(time.time() - desk.clock.now())
    with CallbackServer(public_key=public_key) as receiver:
        await delivered(desk, receiver, PNG + bytes(size))
        (entry,) = receiver.entries()
    assert entry.signature is SignatureVerdict.RIGHT


async def test_the_key_outlives_the_tracker(start: StartDesk) -> None:
    desk = await start()
    first = (await desk.tracker.health()).public_key
    await desk.tracker.close()
    again = await start()
    assert (await again.tracker.health()).public_key == first
    assert len(again.rows(signing_key.select())) == 1
