"""Signed requests: what is accepted, and each way in which one can be wrong."""

from collections.abc import Callable
from types import SimpleNamespace

import httpx
import pytest
from bittensor_wallet import Keypair
from fastapi import Request

from callback.records import Remember
from serve_app.access.clients import Client
from serve_app.access.epistula import FRESH_S, NotSigned, is_signed, read
from serve_app.access.epistula import check as check_signature
from serve_app.api import identification
from serve_app.api.errors import Refused
from tests.signed_requests import signed

ALICE, BOB, EVE = (Keypair.create_from_uri(uri) for uri in ("//Alice", "//Bob", "//Eve"))
US = str(BOB.ss58_address)
BODY = b'{"prompt": "a lighthouse"}'
NOW = 1_900_000_000.0
Change = Callable[[dict[str, str]], None]


def headers(body: bytes = BODY, *, at: float = NOW, digest_of: bytes | None = None) -> dict[str, str]:
    return signed(ALICE, US, body, uuid="number", milliseconds=round(at * 1000), digest_of=digest_of)


def check(sent: dict[str, str], body: bytes = BODY, method: str = "POST") -> tuple[str, str, float]:
    assert is_signed(httpx.Headers(sent))
    request = read(httpx.Headers(sent), hotkey=US, now=NOW)
    check_signature(request, method, body)
    return request.sender, request.uuid, request.signed_at


def test_a_signed_request_is_its_senders() -> None:
    expected = (str(ALICE.ss58_address), "number", NOW)
    assert check(headers()) == expected
    bare = {name: value.replace("0x", "", 1) if name == "Authorization" else value for name, value in headers().items()}
    assert check(bare) == expected
    twice = headers()
    assert check({**twice, "Epistula-Signature": twice["Authorization"].removeprefix("Epistula ")}) == expected


@pytest.mark.parametrize("digest_of", [b"", b"{}"])
def test_a_get_without_a_body_may_be_signed_over_an_empty_object(digest_of: bytes) -> None:
    assert check(headers(b"", digest_of=digest_of), b"", "GET")[1] == "number"


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_no_other_request_may(method: str) -> None:
    with pytest.raises(NotSigned, match="Signature Mismatch"):
        check(headers(b"", digest_of=b"{}"), b"", method)


@pytest.mark.parametrize("away_s", [-FRESH_S, FRESH_S])
def test_clocks_may_differ_by_seconds(away_s: float) -> None:
    assert check(headers(at=NOW + away_s))[2] == NOW + away_s


def put(name: str, value: str) -> Change:
    return lambda sent: sent.update({name: value})


def drop(name: str) -> Change:
    return lambda sent: sent.pop(name) and None


WRONG: list[tuple[Change, str]] = [
    (drop("Authorization"), "Authorization header required"),
    (put("Authorization", "Bearer 0x00"), "Authorization header required"),
    (put("Authorization", "Epistula"), "Authorization header required"),
    (put("Authorization", "Epistula zz"), "Invalid Signature Format"),
    (put("Authorization", "Epistula 0x00"), "Invalid Signature Format"),
    (put("Authorization", "Epistula 0x" + "00" * 64), "Signature"),
    (put("Epistula-Signature", "0x11"), "differ"),
    *((drop(name), "Missing headers") for name in ("Epistula-Timestamp", "Epistula-UUID", "Epistula-Signed-By")),
    (put("Epistula-UUID", ""), "Missing headers"),
    (put("Epistula-UUID", "other"), "Signature Mismatch"),
    (put("Epistula-UUID", "x" * 129), "longer than 128"),
    (put("Epistula-Timestamp", "soon"), "Invalid Timestamp"),
    (put("Epistula-Timestamp", "-1"), "Invalid Timestamp"),
    (put("Epistula-Timestamp", "1e12"), "Invalid Timestamp"),
    (put("Epistula-Timestamp", "1" * 5000), "Invalid Timestamp"),
    (put("Epistula-Timestamp", str(round(NOW * 1000) + 1)), "Signature Mismatch"),
    (put("Epistula-Timestamp", str(round((NOW - FRESH_S) * 1000) - 1)), "too stale"),
    (put("Epistula-Timestamp", str(round((NOW + FRESH_S) * 1000) + 1)), "too early"),
    (put("Epistula-Signed-For", str(EVE.ss58_address)), "Invalid signed_for address"),
    (put("Epistula-Signed-By", "me"), "Invalid Keypair"),
    (put("Epistula-Signed-By", str(EVE.ss58_address)), "Signature Mismatch"),
]


@pytest.mark.parametrize(("change", "said"), WRONG)
def test_whatever_is_wrong_is_refused_with_a_sentence(change: Change, said: str) -> None:
    sent = headers()
    change(sent)
    with pytest.raises(NotSigned, match=said) as refused:
        check(sent)
    assert str(refused.value).endswith(".")


def test_a_request_with_a_key_or_nothing_is_not_signed() -> None:
    for sent in ({}, {"Authorization": "Bearer dk_key"}, {"Authorization": "Epistulary x"}):
        assert not is_signed(httpx.Headers(sent))


def test_another_body_is_not_the_signed_one() -> None:
    with pytest.raises(NotSigned, match="Signature Mismatch"):
        check(headers(), BODY + b" ")


@pytest.mark.parametrize(("late_s", "counts"), [(0.0, True), (FRESH_S + 1, False)])
async def test_a_request_must_be_fresh_when_its_body_has_come(
    monkeypatch: pytest.MonkeyPatch, late_s: float, counts: bool
) -> None:
    now, remembered = [NOW], []

    async def receive() -> dict[str, object]:
        now[0] += late_s
        return {"type": "http.request", "body": BODY}

    async def remember(command: Remember) -> None:
        remembered.append(command)

    monkeypatch.setattr(identification, "time", SimpleNamespace(time=lambda: now[0]))
    sent = [(name.lower().encode(), value.encode()) for name, value in headers().items()]
    request = Request({"type": "http", "method": "POST", "headers": sent}, receive)
    service = SimpleNamespace(client=SimpleNamespace(remember=remember))
    keys = SimpleNamespace(client_of_hotkey=lambda _: Client("alice", frozenset()))
    signer = identification._signer(service, keys, US, request)  # type: ignore[arg-type]  # what it needs of both
    if counts:
        assert (await signer).name == "alice"
    else:
        with pytest.raises(Refused, match="stale"):
            await signer
    assert len(remembered) == counts
