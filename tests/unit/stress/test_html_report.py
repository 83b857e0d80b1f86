"""The page that a validator sends to an operator, in a real browser."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sample_reports import HOSTILE, sample_report

from stress.checks.outcome import KitReport, Verdict
from stress.reports.html import MAX_JOBS_SHOWN, render_html, write_html
from stress.wire import JobState

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PHONE_WIDTH = 360


def test_the_page_loads_nothing_from_elsewhere_and_escapes_what_it_was_told() -> None:
    page = render_html(sample_report())
    assert HOSTILE not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "default-src &#39;none&#39;" in page
    for loading in ('src="http', "href=", "url(", "@import", 'style="'):
        assert loading not in page


def test_thousands_of_jobs_are_cut_to_those_that_matter() -> None:
    report = sample_report(jobs=MAX_JOBS_SHOWN + 50)
    page = render_html(report)
    assert page.count('<article class="job ') == MAX_JOBS_SHOWN
    assert page.count('<article class="job failed"') == 2
    assert "51 more jobs in the JSON report" in page


def test_a_report_without_checks_or_jobs_is_a_page_too() -> None:
    report = sample_report()
    empty = report.model_copy(update={"checks": ()})
    assert "Nothing was checked" in render_html(empty)
    skipped = report.model_copy(update={"checks": report.checks[3:]})
    assert "Nothing was checked" in render_html(skipped)
    passed = report.model_copy(update={"checks": report.checks[:1]})
    assert "What is wrong" not in render_html(passed)


def test_jobs_that_were_to_fail_count_as_expected() -> None:
    report = sample_report()
    protocol = report.checks[0]
    (job,) = protocol.jobs
    assert job.status is not None
    cancelled = job.model_copy(update={"status": job.status.model_copy(update={"status": JobState.FAILED})})
    refused = job.model_copy(update={"status": None, "accepted": False})
    check = protocol.model_copy(update={"jobs": (job, cancelled, refused)})
    page = render_html(report.model_copy(update={"checks": (check,)}))
    assert "<b>3 / 3</b><span>jobs as expected, 1 completed</span>" in page
    failed = render_html(report)
    assert "<b>11 / 13</b><span>jobs as expected, 13 completed</span>" in failed


def test_what_was_measured_once_is_one_figure() -> None:
    report = sample_report()
    figures = {"jobs": 1.0, "jobs_accepted": 1.0, "final_p50_s": 5.31, "final_p99_s": 5.31}
    once = report.checks[0].model_copy(update={"figures": figures})
    page = render_html(report.model_copy(update={"checks": (once,)}))
    assert re.findall(r"<dt>([^<]+)</dt><dd>([^<]+)</dd>", page) == [("final", "5.31 s")]
    many = dict(re.findall(r"<dt>([^<]+)</dt><dd>([^<]+)</dd>", render_html(report)))
    assert (many["final p50"], many["final p99"]) == ("21.4 s", "44 s")


def test_an_interrupted_report_says_so_first() -> None:
    report = sample_report()
    cut = report.model_copy(update={"settings": {**report.settings, "interrupted": True}})
    assert "<h1>Interrupted: 2 of 3 checks failed</h1>" in render_html(cut)


def test_a_thumbnail_that_is_no_picture_address_is_not_shown() -> None:
    report = sample_report()
    job = report.checks[0].jobs[0]
    assert job.picture is not None
    evil = job.model_copy(update={"picture": job.picture.model_copy(update={"thumbnail": "https://tracker.example/x"})})
    check = report.checks[0].model_copy(update={"jobs": (evil,), "verdict": Verdict.PASSED})
    assert "tracker.example" not in render_html(report.model_copy(update={"checks": (check,)}))


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (the test extra has it)"
    )
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("No chromium on this machine (Debian: apt install chromium).")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def complaints() -> list[str]:
    """What the browser had to complain about: console errors, script errors, dialogs, requests."""
    return []


@pytest.fixture
def page(browser: "Browser", complaints: list[str], tmp_path: Path) -> Iterator["Page"]:
    path = tmp_path / "report.html"
    write_html(sample_report(), path)
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.on("console", lambda message: complaints.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"script: {error}"))
    page.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)
    page.goto(path.as_uri())
    yield page
    page.close()
    assert not complaints


def _shown(page: "Page", selector: str) -> int:
    return page.locator(f"{selector}:visible").count()


@pytest.mark.browser
def test_markup_in_ids_and_prompts_is_shown_as_text(page: "Page") -> None:
    card = page.locator("article.job", has_text=HOSTILE)
    assert card.count() == 1
    assert card.locator("bdi.prompt").inner_text() == HOSTILE
    assert card.locator("bdi.mono").inner_text() == HOSTILE
    assert page.locator("img[src=x]").count() == 0


@pytest.mark.browser
def test_every_picture_loads(page: "Page") -> None:
    widths = page.locator("article.job img").evaluate_all("images => images.map(image => image.naturalWidth)")
    assert len(widths) == 13
    assert all(width > 0 for width in widths)


@pytest.mark.browser
def test_the_filters_choose_by_verdict_check_and_words(page: "Page") -> None:
    assert _shown(page, "#checks article") == 4
    page.get_by_role("button", name="Failed").click()
    assert (_shown(page, "#checks article"), _shown(page, "#jobs article")) == (2, 2)
    assert page.get_by_role("button", name="Failed").get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="Skipped").click()
    assert (_shown(page, "#checks article"), _shown(page, "#jobs article")) == (1, 0)
    assert page.get_by_text("No job fits the filter.").is_visible()
    page.get_by_role("button", name="All").click()
    page.get_by_label("Check", exact=True).select_option("protocol")
    assert (_shown(page, "#checks article"), _shown(page, "#jobs article")) == (1, 1)
    page.get_by_label("Check", exact=True).select_option("")
    page.get_by_role("searchbox").fill("KIT-CONCURRENT-3-")
    assert (_shown(page, "#findings article"), _shown(page, "#jobs article")) == (1, 1)


@pytest.mark.browser
def test_nothing_is_cut_off_on_a_phone(page: "Page") -> None:
    page.set_viewport_size({"width": PHONE_WIDTH, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE_WIDTH


@pytest.mark.browser
def test_plots_are_drawn_and_dark_follows_the_system(page: "Page") -> None:
    assert _shown(page, "#checks svg") == 4
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light


@pytest.mark.browser
def test_printing_opens_what_is_folded_and_leaves_the_filters_out(page: "Page") -> None:
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.locator("details:not([open])").count() == 0
    assert not page.locator(".tools").is_visible()


def test_the_page_is_the_same_for_the_same_report() -> None:
    report: KitReport = sample_report()
    assert render_html(report) == render_html(report)
