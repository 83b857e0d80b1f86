"""Bad input gets a status and a sentence that names the field, what is wrong and the limit; nothing else happens."""

import json
import socket
import time
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import pytest

from serve_app.api.limits import MAX_BODY_BYTES
from tests.apps import App

FINE: dict[str, Any] = {"prompt": "x", "model": "simulated", "width": 64, "height": 64, "num_inference_steps": 1}

UNPROCESSABLE = [
    ("no prompt", {"prompt": None}, "prompt", "string"),
    ("blank prompt", {"prompt": " \n\t"}, "prompt", "blank"),
    ("empty prompt", {"prompt": ""}, "prompt", "blank"),
    ("long prompt", {"prompt": "x" * 4001}, "prompt", "4000"),
    ("prompt of another type", {"prompt": 5}, "prompt", "string"),
    ("prompt with NUL", {"prompt": "a\x00b"}, "prompt", "NUL"),
    ("prompt with half a surrogate pair", {"prompt": "a\ud800b"}, "prompt", "surrogate"),
    ("long negative prompt", {"negative_prompt": "x" * 4001}, "negative_prompt", "4000"),
    ("narrow", {"width": 63}, "width", "64"),
    ("wide", {"width": 2049}, "width", "2048"),
    ("low", {"height": 63}, "height", "64"),
    ("high", {"height": 2049}, "height", "2048"),
    ("width as a word", {"width": "wide"}, "width", "number"),
    ("width as digits in quotes", {"width": "64"}, "width", "number"),
    ("width as a truth", {"width": True}, "width", "number"),
    ("width as a fraction", {"width": 64.5}, "width", "integer"),
    ("no steps", {"num_inference_steps": 0}, "num_inference_steps", "1"),
    ("many steps", {"num_inference_steps": 101}, "num_inference_steps", "100"),
    ("negative guidance", {"guidance_scale": -0.1}, "guidance_scale", "0"),
    ("much guidance", {"guidance_scale": 20.1}, "guidance_scale", "20"),
    ("guidance NaN", {"guidance_scale": float("nan")}, "guidance_scale", "finite"),
    ("negative seed", {"seed": -1}, "seed", "0"),
    ("large seed", {"seed": 2**63}, "seed", str(2**63 - 1)),
    ("job id with a slash", {"job_id": "a/b"}, "job_id", "letters"),
    ("job id that climbs", {"job_id": "../../etc/passwd"}, "job_id", "letters"),
    ("hidden job id", {"job_id": ".hidden"}, "job_id", "'.'"),
    ("empty job id", {"job_id": ""}, "job_id", "letters"),
    ("long job id", {"job_id": "x" * 129}, "job_id", "128"),
    ("job id with a new line", {"job_id": "a\n"}, "job_id", "letters"),
    ("unknown model", {"model": "gpt"}, "model", "simulated"),
    ("unreadable expiry", {"expiry": "tomorrow"}, "expiry", "ISO 8601"),
    ("expiry as a number", {"expiry": 1_900_000_000}, "expiry", "ISO 8601"),
    ("callback by ftp", {"callback_url": "ftp://127.0.0.1/x"}, "callback_url", "http://"),
    ("callback to a file", {"callback_url": "file:///etc/passwd"}, "callback_url", "http://"),
    ("callback without a host", {"callback_url": "http:///x"}, "callback_url", "host"),
    ("callback that is no URL", {"callback_url": "nonsense"}, "callback_url", "http://"),
    ("callback with a password", {"callback_url": "http://a:b@127.0.0.1/"}, "callback_url", "password"),
    ("callback to nowhere", {"callback_url": "http://does-not-exist.invalid/"}, "callback_url", "resolve"),
    (
        "callback to a private network",
        {"callback_url": "http://10.0.0.1/"},
        "callback_url",
        "callback_allowed_networks",
    ),
    ("callback to metadata", {"callback_url": "http://169.254.169.254/latest"}, "callback_url", "does not send"),
    ("secret with a line break", {"callback_secret": "a\r\nX-Evil: 1"}, "callback_secret", "ASCII"),
    ("long secret", {"callback_secret": "x" * 1025}, "callback_secret", "1024"),
    ("unknown adapter", {"lora_path": "no-such-adapter"}, "lora_path", "known adapters: foreign, strong"),
    ("adapter of another family", {"model": "embedded", "lora_path": "foreign"}, "lora_path", "foreign"),
    ("adapter outside the folder", {"lora_path": "../../etc/passwd"}, "lora_path", ""),
    ("absolute adapter", {"lora_path": "/etc/passwd"}, "lora_path", ""),
]


@pytest.mark.defect("D10")
@pytest.mark.defect("D11")
@pytest.mark.parametrize(
    ("changes", "field", "word"), [row[1:] for row in UNPROCESSABLE], ids=[r[0] for r in UNPROCESSABLE]
)
def test_a_wrong_field_is_named_with_its_limit(
    http: httpx.Client, changes: dict[str, Any], field: str, word: str
) -> None:
    body = json.dumps(FINE | changes)
    answer = http.post("/inference", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    (detail,) = answer.json()["detail"]
    assert detail["loc"][-1] == field
    assert field in detail["msg"]
    assert word in detail["msg"]
    for leak in ("Traceback", "site-packages", "/root", "/home", ".py"):
        assert leak not in answer.text


def test_a_missing_prompt_is_named(http: httpx.Client) -> None:
    answer = http.post("/inference", json={})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["msg"] == "prompt: is required."


def test_the_secret_is_not_repeated_when_something_else_is_wrong(http: httpx.Client) -> None:
    answer = http.post("/inference", json=FINE | {"width": 1, "callback_secret": "do-not-repeat-me"})
    assert answer.status_code == 422
    assert "do-not-repeat-me" not in answer.text


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"prompt=x", b"9" * 6000, b"[" * 100_000])
def test_what_is_not_json_gets_400(http: httpx.Client, body: bytes) -> None:
    answer = http.post("/inference", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error_code"] == "invalid_json"


@pytest.mark.parametrize("body", [b"", b"[]", b'"x"', b"5", b"null"])
def test_json_that_is_no_object_gets_422(http: httpx.Client, body: bytes) -> None:
    assert http.post("/inference", content=body, headers={"Content-Type": "application/json"}).status_code == 422


def test_an_announced_body_over_the_limit_gets_413(http: httpx.Client) -> None:
    answer = http.post("/inference", json={"prompt": "x" * MAX_BODY_BYTES})
    assert answer.status_code == 413
    assert answer.json()["error_code"] == "body_too_large"


def test_a_streamed_body_gets_413_before_it_is_read_whole(app: App) -> None:
    url = httpx.URL(app.url)
    head = (
        f"POST {url.path}/inference HTTP/1.1\r\nHost: {url.netloc.decode()}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with socket.create_connection((url.host, url.port), timeout=20) as connection:
        connection.sendall(head.encode())
        for _ in range(13):
            connection.sendall(b"186a0\r\n" + b"x" * 100_000 + b"\r\n")
        # The body is not at its end, and never will be: the answer does not wait for it.
        assert b" 413 " in connection.recv(4096).partition(b"\r\n")[0]


def test_clients_that_send_slowly_keep_nobody_waiting(app: App, http: httpx.Client) -> None:
    url = httpx.URL(app.url)
    beginnings = (
        f"POST {url.path}/inf",
        f"POST {url.path}/inference HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\n{{",
    )
    with ExitStack() as stack:
        for n in range(200):
            connection = stack.enter_context(socket.create_connection((url.host, url.port), timeout=20))
            connection.sendall(beginnings[n % 2].encode())
        began = time.monotonic()
        job_id = http.post("/inference", json=FINE).raise_for_status().json()["job_id"]
        assert http.get(f"/inference/status/{job_id}?wait=20").json()["status"] == "completed"
        assert time.monotonic() - began < 10


def test_huge_headers_harm_nobody(app: App, http: httpx.Client) -> None:
    url = httpx.URL(app.url)
    with socket.create_connection((url.host, url.port), timeout=20) as connection:
        connection.sendall(f"GET {url.path}/jobs HTTP/1.1\r\nHost: {url.netloc.decode()}\r\n".encode())
        # Whether Serve's proxy takes them all is its own affair; it may hang up in the middle.
        with suppress(ConnectionError):
            connection.sendall(b"".join(b"X-%d: %s\r\n" % (n, b"x" * 10_000) for n in range(1000)) + b"\r\n")
            assert connection.recv(4096).split()[1] in {b"200", b"400", b"431"}
    assert http.get("/jobs").status_code == 200


@pytest.mark.parametrize("path", ["/inference/status/nobody", "/inference/result/nobody", "/images/nobody.png"])
def test_an_unknown_job_gets_404(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 404
    assert "nobody" in answer.json()["detail"]


@pytest.mark.defect("D11")
@pytest.mark.parametrize(
    "path",
    [
        "/images/..%2f..%2fjobs.db.png",
        "/images/%2e%2e%2fjobs.db",
        "/inference/result/..%2f..%2fetc%2fpasswd",
        "/inference/status/.hidden",
        "/images/jobs.db",
    ],
)
def test_a_path_instead_of_an_id_reads_nothing(http: httpx.Client, path: str) -> None:
    assert http.get(path).status_code in {404, 422}


@pytest.mark.parametrize("query", ["status=sleeping", "limit=0", "limit=501", "cursor=-1", "cursor=x"])
def test_a_wrong_list_query_gets_422(http: httpx.Client, query: str) -> None:
    assert http.get(f"/jobs?{query}").status_code == 422


@pytest.mark.parametrize("wait", ["-1", "61", "soon", "nan"])
def test_a_wrong_wait_gets_422(http: httpx.Client, wait: str) -> None:
    assert http.get(f"/inference/status/x?wait={wait}").status_code == 422


def test_an_unknown_route_and_method_are_answered_in_form(http: httpx.Client) -> None:
    assert http.get("/no/such/route").json()["error_code"] == "not_found"
    assert http.put("/inference").json()["error_code"] == "method_not_allowed"
