"""The reports that the command line writes."""

import html
import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from faulty_service import FaultyService, Flaw
from junitparser import JUnitXml
from kit_calls import SMALL, Kit
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from typer.testing import CliRunner

from stress.background_server import BackgroundServer
from stress.callback_server import CallbackServer
from stress.checks.outcome import KitReport, Verdict
from stress.cli import app


def test_a_failed_check_exits_1_and_is_in_every_report(kit: Kit, tmp_path: Path) -> None:
    reports = {name: tmp_path / "reports" / f"kit.{name}" for name in ("json", "junit", "html")}
    flags = [word for name, path in reports.items() for word in (f"--{name}", str(path))]
    with FaultyService(Flaw.WRONG_SECRET) as service:
        result = kit("run", "--miner-url", service.url, "--only", "protocol", "--only", "unknown-id", *SMALL, *flags)
    assert result.exit_code == 1, result.output
    assert "- Passed: 1" in result.stdout
    assert "wrong_secret" in result.stdout
    report = KitReport.model_validate_json(reports["json"].read_text())
    assert [(check.name, check.verdict) for check in report.checks] == [
        ("protocol", Verdict.FAILED),
        ("unknown-id", Verdict.PASSED),
    ]
    assert report.service_name
    shown = [result.output, *(path.read_text() for path in reports.values())]
    assert not any("test-secret" in text for text in shown)
    (suite,) = JUnitXml.fromfile(str(reports["junit"]))
    assert (suite.tests, suite.failures) == (2, 1)
    assert "X-Callback-Secret" in reports["html"].read_text()


def test_the_page_says_how_to_repeat_the_call_without_its_secrets(
    kit: Kit, service: FaultyService, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASYNC_MINER_URL", service.url)
    monkeypatch.setenv("STRESS_TEST_CONCURRENT", "2")
    page = tmp_path / "kit.html"
    chosen = (
        "--only",
        "late-callbacks",
        "--only",
        "rapid-sequential",
        "--sequential",
        "1",
        "--no-reference",
        "--quick",
    )
    secrets = ("--callback-secret", "s3cret", "--header", "Authorization: Bearer s3cret", "--header", "X-Two: s3cret")
    result = kit("stress", *chosen, *secrets, "--prompt", "it's <a> star", "--html", str(page), *SMALL, "-q")
    assert result.exit_code == 0, result.output
    text = html.unescape(page.read_text())
    assert "s3cret" not in text
    (line,) = re.findall(r"Repeat it with <code>(.*)</code>", text)
    variable, *program, command = shlex.split(line)[:5]
    assert (variable, program, command) == ("STRESS_TEST_CONCURRENT=2", ["python", "-m", "stress.cli"], "stress")
    words = shlex.split(line)[5:]
    pairs = set(pairwise(words))
    for pair in (
        ("--miner-url", service.url),
        ("--callback-base", base),
        ("--only", "late-callbacks"),
        ("--only", "rapid-sequential"),
        ("--sequential", "1"),
        ("--header", "Authorization: ..."),
        ("--header", "X-Two: ..."),
        ("--prompt", "it's <a> star"),
        ("--steps", "2"),
    ):
        assert pair in pairs
    assert {"--no-reference", "--quick", "--quiet"} <= set(words)
    assert "--seed" not in words


@pytest.mark.parametrize("keeps", [True, False])
def test_a_picture_has_a_path_in_the_report_only_where_it_is_kept(
    keeps: bool, service: FaultyService, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "kit.json"
    receiver = ("--callback-base", base, "--callback-bind-host", "127.0.0.1")
    kept = ("--pictures", str(tmp_path / "kept")) if keeps else ()
    flags = ("--only", "protocol", "--json", str(path), *receiver, *kept, *SMALL)
    assert CliRunner().invoke(app, ["--miner-url", service.url, *flags]).exit_code == 0
    picture = json.loads(path.read_text())["checks"][0]["jobs"][0]["picture"]
    assert (picture["path"] is not None and Path(picture["path"]).is_file()) == keeps
    assert keeps or picture["path"] is None


def test_a_folder_for_pictures_that_cannot_be_had_is_noticed_before_the_checks(
    service: FaultyService, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with CallbackServer(secret="test-secret") as receiver:
        flags = ("--no-auto-callback", "--callback-base", receiver.url, "--pictures", str(tmp_path / "file" / "folder"))
        result = CliRunner().invoke(app, ["--miner-url", service.url, "--only", "protocol", *flags, *SMALL])
    assert result.exit_code == 2
    assert "another folder for --pictures" in result.stderr
    assert service.submissions == 0


def test_a_kit_that_could_not_begin_leaves_no_empty_report(kit: Kit, base: str, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier.html"
    earlier.write_text("earlier")
    flags = ("--json", str(tmp_path / "new.json"), "--html", str(earlier))
    assert kit("--miner-url", f"http://127.0.0.1:{base.rsplit(':', 1)[1]}", *flags).exit_code == 2
    assert not (tmp_path / "new.json").exists()
    assert earlier.read_text() == "earlier"


def test_a_report_that_cannot_be_written_at_the_end_takes_nothing_with_it_but_the_exit_code(
    kit: Kit, service: FaultyService, tmp_path: Path
) -> None:
    # Writing to this device fails with "no space left"; opening it does not.
    flags = ("--only", "unknown-id", "--json", "/dev/full", "--html", str(tmp_path / "kit.html"))
    result = kit("--miner-url", service.url, *flags, *SMALL)
    assert result.exit_code == 2
    assert "/dev/full could not be written" in result.stderr
    assert "- Passed: 1" in result.stdout
    assert "The check passed" in (tmp_path / "kit.html").read_text()


def test_half_a_character_in_an_answer_costs_no_report_and_forges_no_line(kit: Kit, tmp_path: Path) -> None:
    body = rb'{"detail": "\ud800 broken\n- Passed: 99"}'

    async def answer(request: Request) -> Response:
        if request.method == "POST":
            return Response(body, 500, media_type="application/json")
        return JSONResponse({"name": "x", "version": "1", "status": "healthy"})

    routes = [Route(path, answer, methods=["GET", "POST"]) for path in ("/", "/health", "/inference")]
    reports = {name: tmp_path / f"kit.{name}" for name in ("json", "junit", "html")}
    flags = [word for name, path in reports.items() for word in (f"--{name}", str(path))]
    with BackgroundServer(Starlette(routes=routes), probe_path="/health") as server:
        result = kit("--miner-url", server.url, "--only", "protocol", *flags, *SMALL)
    assert result.exit_code == 1, result.stderr
    assert [line for line in result.stdout.splitlines() if line.startswith("- Passed")] == ["- Passed: 0"]
    for path in reports.values():
        assert "broken" in path.read_text(encoding="utf-8")
