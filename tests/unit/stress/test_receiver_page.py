"""The dashboard in a real browser."""

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sent_callbacks import SIGNING_SECRET, png, post, request, send, signed

from stress.callback_server import CallbackServer

CHROMIUM = Path("/usr/bin/chromium")
MARKUP = "<img src=x onerror=alert(1)>"
RIGHT = {"X-Callback-Secret": "right"}
TIMEOUT_MS = 30_000.0

playwright_api = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed: pip install playwright"
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM}: install Debian's chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def receiver() -> Iterator[CallbackServer]:
    with CallbackServer(secret="right") as server:
        yield server


@pytest.fixture
def open_page(browser: Any, receiver: CallbackServer) -> Iterator[Any]:
    """`open_page(width=1280, fragment="")`: the dashboard; at the end nothing may have gone wrong in any."""
    complaints: list[str] = []
    contexts = []

    def open_one(*, width: int = 1280, fragment: str = "", scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on(
            "request",
            lambda asked: None if asked.url.startswith(receiver.url) else complaints.append(f"asked for {asked.url}"),
        )
        page.goto(f"{receiver.url}/{fragment}")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert complaints == []


def rows(page: Any) -> Any:
    return page.locator("tr.row")


def expect_rows(page: Any, count: int) -> None:
    playwright_api.expect(rows(page)).to_have_count(count, timeout=TIMEOUT_MS)


def shows(page: Any, selector: str, text: str) -> None:
    playwright_api.expect(page.locator(selector)).to_contain_text(text, timeout=TIMEOUT_MS)


def screenshot(page: Any, name: str) -> None:
    """For a person to look at, where the environment names a folder."""
    folder = os.environ.get("DARKROOM_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


def test_an_empty_page_says_what_to_do(receiver: CallbackServer, open_page: Any) -> None:
    page = open_page()

    shows(page, "#empty", "Nothing has arrived yet")
    shows(page, "#empty .callback-url", receiver.callback_url)
    shows(page, "#example", f"curl {receiver.callback_url}")
    screenshot(page, "empty")


def test_pictures_are_loaded_and_open_whole(receiver: CallbackServer, open_page: Any) -> None:
    for number in range(3):
        post(receiver, picture=png(number, side_px=300), job_id=f"job-{number}", headers=RIGHT, completed_at=ago(1))
    page = open_page()
    expect_rows(page, 3)

    page.wait_for_function(
        "() => { const all = [...document.querySelectorAll('.thumb img')];"
        " return all.length === 3 && all.every((image) => image.complete && image.naturalWidth === 256); }"
    )
    page.get_by_role("button", name="job-1").click()
    page.wait_for_function("() => document.querySelector('.whole img')?.naturalWidth === 300")

    shows(page, ".facts", receiver.entries()[1].sha256 or "")
    shows(page, "#figure-pictures", "3 of 3")
    screenshot(page, "open")


def test_what_callers_sent_is_shown_as_text(receiver: CallbackServer, open_page: Any) -> None:
    receiver.misbehave(answer_status=200, job_id=MARKUP)
    post(
        receiver,
        headers={**RIGHT, "webhook-id": MARKUP, "webhook-timestamp": MARKUP},
        job_id=MARKUP,
        status=MARKUP,
        error=MARKUP,
        image_url=MARKUP,
        completed_at=MARKUP,
    )
    post(receiver, job_id=f"{MARKUP}/../", headers=RIGHT)
    page = open_page()
    expect_rows(page, 2)
    for row in rows(page).all():
        row.click()

    for selector in ("tr.row .job >> nth=0", "tr.row .status >> nth=0", "#misbehaviour"):
        shows(page, selector, MARKUP)
    page.select_option("select[name=status]", MARKUP)
    expect_rows(page, 1)
    shows(page, ".facts", MARKUP)
    assert page.evaluate("() => document.querySelectorAll('main img').length") == 0


def test_verdicts_are_shown_and_filtered(open_page: Any, receiver: CallbackServer) -> None:
    post(receiver, picture=png(), job_id="good", headers=RIGHT, completed_at=ago(1))
    post(receiver, picture=png(1, black_from=0.5), job_id="partial", headers=RIGHT, completed_at=ago(1))
    post(receiver, picture=png(2), job_id="guessed", headers={"X-Callback-Secret": "guess"}, completed_at=ago(1))
    post(receiver, job_id="failed", status="failed", error="out of memory", headers=RIGHT, completed_at=ago(1))
    for _ in range(2):
        headers = {**RIGHT, "webhook-id": "w", "webhook-attempt": "1"}
        post(receiver, picture=png(3), job_id="twice", headers=headers, completed_at=ago(1))
    post(receiver, job_id="a/b", headers=RIGHT)
    page = open_page()
    expect_rows(page, 7)
    shows(page, "tr.row:has-text('partial')", "invalid")

    def left(count: int) -> list[str]:
        expect_rows(page, count)
        return [str(name) for name in page.locator("tr.row .job").all_text_contents()]

    shows(page, "#figure-problems", "4")
    shows(page, "#figure-refused", "1")
    page.get_by_label("Only problems").check()
    assert left(5) == ["a/b", "twice", "failed", "guessed", "partial"]
    page.get_by_role("button", name="Show all").click()
    assert len(left(7)) == 7
    for field, value, wanted in (
        ("verdict", "secret", ["guessed"]),
        ("verdict", "picture", ["partial"]),
        ("verdict", "refused", ["a/b"]),
        ("verdict", "error", ["failed"]),
        ("kind", "duplicate", ["twice"]),
        ("status", "failed", ["failed"]),
    ):
        page.select_option(f"select[name={field}]", value)
        assert left(len(wanted)) == wanted
        page.select_option(f"select[name={field}]", "")
    page.get_by_role("searchbox").fill("OUT OF mem")
    assert left(1) == ["failed"]
    page.get_by_role("searchbox").fill("nobody")
    shows(page, "#no-match", "No callback matches")
    screenshot(page, "no-match")


def test_filters_are_in_the_address_so_that_a_view_can_be_sent_on(open_page: Any, receiver: CallbackServer) -> None:
    post(receiver, job_id="a", headers=RIGHT)
    post(receiver, job_id="b", headers=RIGHT, status="failed")
    page = open_page()
    expect_rows(page, 2)
    page.select_option("select[name=status]", "failed")
    expect_rows(page, 1)

    again = open_page(fragment=page.evaluate("location.hash"))

    expect_rows(again, 1)
    assert again.locator("tr.row .job").all_text_contents() == ["b"]


def test_signatures_are_shown(browser: Any) -> None:
    with CallbackServer(signing_secret=SIGNING_SECRET) as server:
        send(signed(request(server.callback_url, job_id="right", completed_at=ago(1))))
        send(signed(request(server.callback_url, job_id="old", completed_at=ago(1)), moment=time.time() - 900))
        send(signed(request(server.callback_url, job_id="forged", completed_at=ago(1)), key=b"o" * 32))
        post(server, job_id="unsigned", completed_at=ago(1))
        page = browser.new_page()
        page.goto(server.url)
        expect_rows(page, 4)
        page.select_option("select[name=verdict]", "signature")
        expect_rows(page, 3)
        found = page.locator("tr.row td:nth-child(6)").all_text_contents()
        page.close()

    assert found == ["missing", "wrong", "stale"]


def test_what_arrives_appears_without_a_reload_and_moves_nothing(open_page: Any, receiver: CallbackServer) -> None:
    for number in range(30):
        post(receiver, job_id=f"early-{number}", headers=RIGHT, status="failed", error="x")
    page = open_page()
    expect_rows(page, 30)
    page.evaluate("window.stillHere = true; scrollTo(0, 900)")
    row = page.locator("tr.row:has-text('early-12')")
    before = row.bounding_box()

    post(receiver, job_id="late", headers=RIGHT, picture=png(), completed_at=ago(1))
    expect_rows(page, 31)
    shows(page, "#news", "1 new callback")

    after = row.bounding_box()
    assert abs(before["y"] - after["y"]) <= 1
    assert page.locator("tr.row .job").first.text_content() == "late"
    page.locator("#news").click()
    page.wait_for_function("() => scrollY === 0 && document.querySelector('#news').hidden")
    assert page.evaluate("window.stillHere")


def test_an_open_row_stays_open_and_a_cleared_receiver_empties_the_page(
    open_page: Any, receiver: CallbackServer
) -> None:
    post(receiver, job_id="first", headers=RIGHT)
    page = open_page()
    page.get_by_role("button", name="first").click()
    shows(page, ".facts", "Received at")
    post(receiver, job_id="second", headers=RIGHT)
    expect_rows(page, 2)
    shows(page, ".facts", "Received at")

    receiver.clear()

    shows(page, "#empty", "Nothing has arrived yet")
    expect_rows(page, 0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_at_the_width_of_a_phone(open_page: Any, receiver: CallbackServer, scheme: str) -> None:
    post(receiver, picture=png(), job_id="x" * 200, headers=RIGHT, completed_at=ago(1), image_url="http://" + "y" * 900)
    post(receiver, job_id="failed", status="s" * 64, error="e" * 2000, headers=RIGHT, completed_at=ago(1))
    post(receiver, job_id="a/" + "z" * 300, headers=RIGHT)
    receiver.misbehave(answer_status=503, job_id="w" * 200)
    page = open_page(width=390, scheme=scheme)
    expect_rows(page, 3)
    for row in rows(page).all():
        row.locator(".job").click()
    page.wait_for_function("() => document.querySelector('.whole img')?.naturalWidth === 64")

    width = page.evaluate("() => document.documentElement.scrollWidth")
    outside = page.evaluate(
        "() => [...document.querySelectorAll('main *')]"
        ".filter((it) => it.getBoundingClientRect().right > innerWidth + 1 && !it.matches('.unseen, thead *, thead'))"
        ".map((it) => it.outerHTML.slice(0, 80))"
    )

    screenshot(page, f"phone-{scheme}")
    assert width == 390
    assert outside == []


def test_a_receiver_that_is_gone_is_said_to_be_and_comes_back(browser: Any) -> None:
    server = CallbackServer()
    page = browser.new_page()
    with server:
        post(server)
        page.goto(server.url)
        expect_rows(page, 1)
    shows(page, "#live", "does not answer")
    with server:
        post(server, job_id="job-2")
        expect_rows(page, 2)
        shows(page, "#live", "Live")
    page.close()


@pytest.mark.parametrize("width", [1280, 360])
def test_a_long_job_id_begins_beside_its_mark(width: int, receiver: CallbackServer, open_page: Any) -> None:
    post(receiver, headers=RIGHT, job_id="a" * 150)
    page = open_page(width=width)
    expect_rows(page, 1)
    below_px = page.locator("button.job").evaluate(
        """button => {
            const text = document.createRange();
            text.selectNodeContents(button);
            return text.getClientRects()[0].top - button.getBoundingClientRect().top;
        }"""
    )
    assert below_px < 8
