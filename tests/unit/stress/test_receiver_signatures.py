import base64
import builtins
import time
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sent_callbacks import HMAC_KEY, SIGNING_SECRET, png, request, send, signed

from stress.callback_server import CallbackServer
from stress.errors import BackgroundServerError
from stress.receiver.entries import EntryKind
from stress.receiver.signatures import SignatureVerdict, SignatureVerifier, SignedHeaders

PRIVATE_KEY = Ed25519PrivateKey.from_private_bytes(b"p" * 32)
PUBLIC_KEY = "whpk_" + base64.b64encode(PRIVATE_KEY.public_key().public_bytes_raw()).decode()
NOW = 1_674_087_231


def ed25519(content: bytes) -> str:
    return "v1a," + base64.b64encode(PRIVATE_KEY.sign(content)).decode()


def verifier(**keys: Any) -> SignatureVerifier:
    return SignatureVerifier(**{"signing_secret": SIGNING_SECRET, **keys}, clock=lambda: NOW)


def headers_of(made: httpx.Request) -> SignedHeaders:
    return SignedHeaders(
        made.headers.get("webhook-id"), made.headers.get("webhook-timestamp"), made.headers.get("webhook-signature")
    )


def test_a_published_example_of_hmac_is_right() -> None:
    # From the test of the reference implementation, github.com/standard-webhooks/standard-webhooks.
    check = SignatureVerifier("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", clock=lambda: 1614265330)
    headers = SignedHeaders(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )

    assert check.verdict(headers, b'{"test": 2432232314}') is SignatureVerdict.RIGHT
    assert check.verdict(headers, b'{"test": 2432232315}') is SignatureVerdict.WRONG


def test_the_raw_bytes_of_a_multipart_callback_are_verified() -> None:
    with CallbackServer(signing_secret=SIGNING_SECRET) as server:
        genuine = signed(request(server.callback_url, picture=png()))
        tampered = signed(request(server.callback_url, picture=png(1)))
        rewritten = httpx.Request(
            "POST",
            server.callback_url,
            content=tampered.content.replace(b"completed", b"completeD", 1),
            headers=tampered.headers,
        )
        answers = [send(genuine), send(rewritten)]

    assert [answer.status_code for answer in answers] == [200, 401]
    assert "signature is wrong" in answers[1].json()["detail"]
    right, wrong = server.entries()
    assert (right.signature, wrong.signature) == (SignatureVerdict.RIGHT, SignatureVerdict.WRONG)
    assert wrong.has_image
    assert wrong.saved_path is None


def test_ed25519_signatures_are_verified() -> None:
    with CallbackServer(public_key=PUBLIC_KEY) as server:
        made = signed(request(server.callback_url))
        content = f"msg_1.{made.headers['webhook-timestamp']}.".encode() + made.content
        assert send(made).status_code == 401
        made.headers["webhook-signature"] = ed25519(content)
        assert send(made).status_code == 200
        made.headers["webhook-signature"] = ed25519(content + b"x")
        assert send(made).status_code == 401

    verdicts = [entry.signature for entry in server.entries()]
    assert verdicts == [SignatureVerdict.MISSING, SignatureVerdict.RIGHT, SignatureVerdict.WRONG]


@pytest.mark.parametrize(
    ("moment", "verdict"),
    [
        (NOW, "right"),
        (NOW - 299, "right"),
        (NOW + 299, "right"),
        (NOW - 301, "stale"),
        (NOW + 301, "stale"),
    ],
)
def test_a_moment_beyond_five_minutes_is_stale(moment: int, verdict: str) -> None:
    made = signed(request("http://x"), moment=moment)

    assert verifier().verdict(headers_of(made), made.content) == verdict


def test_a_wrong_signature_is_wrong_however_old() -> None:
    made = signed(request("http://x"), moment=NOW - 900, key=b"o" * 32)

    assert verifier().verdict(headers_of(made), made.content) is SignatureVerdict.WRONG


@pytest.mark.parametrize("missing", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_without_one_of_the_three_headers_the_signature_is_missing(missing: str) -> None:
    made = signed(request("http://x"), moment=NOW)
    del made.headers[missing]

    assert verifier().verdict(headers_of(made), made.content) is SignatureVerdict.MISSING


def test_without_a_key_nothing_is_checked() -> None:
    made = signed(request("http://x"), key=b"o" * 32)

    assert SignatureVerifier().verdict(headers_of(made), made.content) is SignatureVerdict.NOT_CHECKED
    assert SignatureVerifier("", "").verdict(headers_of(made), made.content) is SignatureVerdict.NOT_CHECKED


def test_one_of_several_signatures_of_a_scheme_is_enough() -> None:
    made = signed(request("http://x"), moment=NOW)
    right = made.headers["webhook-signature"]
    for header in (f"v1,AAAA {right}", f"{right} v1,AAAA", f"v2,whatever {right}", f"v1a,AAAA {right}"):
        made.headers["webhook-signature"] = header
        assert verifier().verdict(headers_of(made), made.content) is SignatureVerdict.RIGHT


def test_with_both_keys_a_wrong_signature_of_either_scheme_is_found() -> None:
    made = signed(request("http://x"), moment=NOW)
    hmac_right = made.headers["webhook-signature"]
    right = ed25519(f"msg_1.{NOW}.".encode() + made.content)
    both = verifier(public_key=PUBLIC_KEY)
    for header, verdict in (
        (hmac_right, "right"),
        (right, "right"),
        (f"{hmac_right} {right}", "right"),
        (f"{hmac_right} {ed25519(b'x')}", "wrong"),
        (f"v1,AAAA {right}", "wrong"),
    ):
        made.headers["webhook-signature"] = header
        assert both.verdict(headers_of(made), made.content) == verdict


@pytest.mark.parametrize("garbled", ["v1,%%%", "v1", "v1,é", "v1,"])
def test_a_garbled_signature_is_wrong(garbled: str) -> None:
    made = signed(request("http://x"), moment=NOW)
    headers = SignedHeaders("msg_1", str(NOW), garbled)

    assert verifier().verdict(headers, made.content) is SignatureVerdict.WRONG


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"signing_secret": "plain"}, "signing secret is not of the form whsec_"),
        ({"signing_secret": "whsec_%%"}, "signing secret is not of the form whsec_"),
        ({"signing_secret": "whsec_" + base64.b64encode(b"short").decode()}, "has 5 bytes.*24 to 64"),
        ({"public_key": SIGNING_SECRET}, "public key is not of the form whpk_"),
        ({"public_key": "whpk_AAAA"}, "no ed25519 key"),
    ],
)
def test_a_key_that_is_none_gets_a_sentence(keys: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        CallbackServer(**keys)  # type: ignore[arg-type]


def test_without_the_library_a_public_key_gets_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("cryptography"):
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BackgroundServerError, match="pip install cryptography"):
        SignatureVerifier(public_key=PUBLIC_KEY)


def test_a_forged_callback_does_not_make_the_signed_one_a_duplicate() -> None:
    with CallbackServer(signing_secret=SIGNING_SECRET) as server:
        send(signed(request(server.callback_url, headers={"webhook-attempt": "1"}), key=b"o" * 32))
        send(signed(request(server.callback_url, headers={"webhook-attempt": "1"})))

    assert [entry.kind for entry in server.entries()] == [EntryKind.FIRST, EntryKind.FIRST]


def test_the_receivers_own_clock_decides_what_is_stale() -> None:
    with CallbackServer(signing_secret=SIGNING_SECRET) as server:
        answer = send(signed(request(server.callback_url), moment=time.time() - 3600, key=HMAC_KEY))

    assert answer.status_code == 401
    assert "Check both clocks" in answer.json()["detail"]
    assert [entry.signature for entry in server.entries()] == [SignatureVerdict.STALE]
