import hashlib
import io
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image
from sent_callbacks import png, post, until

from stress.callback_server import CallbackServer


@pytest.fixture
def receiver() -> Iterator[CallbackServer]:
    with CallbackServer(secret="right") as server:
        yield server


RIGHT = {"X-Callback-Secret": "right"}


def get(server: CallbackServer, path: str, **params: int) -> httpx.Response:
    return httpx.get(f"{server.url}{path}", params=params, trust_env=False)


def checks(server: CallbackServer, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def complete() -> bool:
        found[:] = get(server, "/feed").json()["checks"]
        return len(found) >= count

    until(complete)
    return found


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html"),
        ("/dashboard.js", "text/javascript"),
        ("/rows.js", "text/javascript"),
        ("/dashboard.css", "text/css"),
        ("/icon.svg", "image/svg+xml"),
    ],
)
def test_the_page_and_its_files_allow_nothing_from_outside(
    receiver: CallbackServer, path: str, media_type: str
) -> None:
    answer = get(receiver, path)

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(media_type)
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'")
    assert "unsafe" not in policy
    assert "http://" not in answer.text.replace('"http://www.w3.org/2000/svg"', "")
    assert "https://" not in answer.text


def test_the_feed_tells_only_what_is_new_and_no_secret(receiver: CallbackServer) -> None:
    post(receiver, headers=RIGHT, completed_at="2020-01-01T00:00:00Z")
    post(receiver, headers={"X-Callback-Secret": "my own secret"})
    post(receiver)
    post(receiver, job_id="a/b")
    whole = get(receiver, "/feed").json()
    rest = get(receiver, "/feed", after=2, refused=1).json()

    assert [entry["secret"] for entry in whole["entries"]] == ["right", "wrong", "missing"]
    assert "my own secret" not in str(whole)
    assert whole["entries"][0]["seconds_after_completion"] > 0
    assert [entry["number"] for entry in rest["entries"]] == [3]
    assert (rest["refusals"], rest["total_refusals"]) == ([], 1)
    assert (whole["oldest"], whole["last"]) == (1, 3)


@pytest.mark.parametrize("completed_at", ["soon", "", "2020-01-01"])
def test_a_moment_of_completion_that_is_none_has_no_lag(receiver: CallbackServer, completed_at: str) -> None:
    answer = post(receiver, completed_at=completed_at or "never", headers=RIGHT)

    assert answer.status_code == 200
    (entry,) = get(receiver, "/feed").json()["entries"]
    assert (entry["seconds_after_completion"] is None) == (completed_at != "2020-01-01")


def test_the_feed_shows_what_misbehaviour_is_set_and_a_new_epoch_after_clear(receiver: CallbackServer) -> None:
    receiver.misbehave(answer_status=503, times=2)
    before = get(receiver, "/feed").json()
    receiver.clear()
    after = get(receiver, "/feed").json()

    assert [it["answer_status"] for it in before["misbehaviour"]] == [503]
    assert before["epoch"] != after["epoch"]


def test_pictures_are_judged_by_what_they_are(receiver: CallbackServer) -> None:
    whole, partial, cut, other = png(), png(side_px=128, black_from=0.5), png(1)[:-2000], b"GIF89a..."
    for picture in (whole, partial, cut, other):
        post(receiver, picture=picture, headers=RIGHT, job_id=sha256(picture)[:8])

    by_hash = {check["sha256"]: check for check in checks(receiver, 4)}

    assert by_hash[sha256(whole)]["valid"]
    assert (by_hash[sha256(whole)]["width"], by_hash[sha256(whole)]["height"]) == (64, 64)
    assert not by_hash[sha256(partial)]["valid"]
    assert "lack tail" in by_hash[sha256(partial)]["reason"]
    assert by_hash[sha256(partial)]["shown"]
    assert not by_hash[sha256(cut)]["shown"]
    assert by_hash[sha256(cut)]["reason"].startswith("Cannot be decoded")
    assert by_hash[sha256(other)]["reason"] == "Not a PNG"


def test_a_picture_is_served_by_hash_and_by_number(receiver: CallbackServer) -> None:
    picture = png()
    post(receiver, picture=picture, headers=RIGHT)

    for name in (sha256(picture), "1"):
        answer = get(receiver, f"/pictures/{name}.png")
        assert answer.content == picture
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")


def test_a_thumbnail_is_small(receiver: CallbackServer) -> None:
    picture = png(side_px=600)
    post(receiver, picture=picture, headers=RIGHT)

    answer = get(receiver, f"/thumbnails/{sha256(picture)}.jpg")

    assert answer.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(answer.content)).size == (256, 256)


def test_what_is_no_png_is_served_as_bytes_only(receiver: CallbackServer) -> None:
    page = b"<script>alert(1)</script>"
    post(receiver, picture=page, headers=RIGHT)

    assert get(receiver, f"/pictures/{sha256(page)}.png").status_code == 404
    assert get(receiver, f"/thumbnails/{sha256(page)}.jpg").status_code == 404
    answer = get(receiver, "/pictures/1.bin")
    assert answer.content == page
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == "attachment"


@pytest.mark.parametrize(
    "name", ["2", "0", "-1", "9" * 30, "job-1", "..%2Fimages%2Fjob-1", "%2e%2e%2fcallbacks", "A" * 64, "a" * 64]
)
def test_a_name_that_is_neither_hash_nor_number_of_a_picture_is_404(receiver: CallbackServer, name: str) -> None:
    post(receiver, picture=png(), headers=RIGHT)

    for address in (f"/pictures/{name}.png", f"/pictures/{name}.bin", f"/thumbnails/{name}.jpg"):
        assert get(receiver, address).status_code == 404


def test_the_picture_of_a_refused_sender_is_not_served(receiver: CallbackServer) -> None:
    post(receiver, picture=png(), headers={"X-Callback-Secret": "guess"})

    assert get(receiver, "/pictures/1.png").status_code == 404
    assert get(receiver, f"/pictures/{sha256(png())}.bin").status_code == 404


def test_a_picture_too_large_to_decode_is_said_to_be_so(receiver: CallbackServer) -> None:
    huge = io.BytesIO()
    Image.new("1", (10_000, 8_000)).save(huge, "PNG")
    post(receiver, picture=huge.getvalue(), headers=RIGHT)

    (check,) = checks(receiver, 1)

    assert not check["shown"]
    assert check["reason"] == "Too large to decode: 10000x8000"
