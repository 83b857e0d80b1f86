"""The command line against services on loopback: lines, exit codes, reports."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from faulty_service import FaultyService
from kit_calls import SMALL, Kit
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from typer.testing import CliRunner

from stress.background_server import BackgroundServer
from stress.callback_server import CallbackServer
from stress.checks.outcome import KitReport, Verdict
from stress.cli import app
from stress.receiver import control

ROOT = Path(__file__).parents[3]
# The machine may be slow; nothing here waits for this long when it is not.
PATIENCE_S = 120


async def _ready(_: Request) -> Response:
    return PlainTextResponse("ready")


READY = Route("/ready", _ready)


def test_without_a_command_the_protocol_check_prints_the_specified_lines(
    kit: Kit, service: FaultyService, base: str, tmp_path: Path
) -> None:
    result = kit("--miner-url", service.url, "--only", "protocol", "--quiet", *SMALL)
    assert result.exit_code == 0, result.output
    expected = [
        "🔄 Starting local callback server...",
        f"   ↳ Listening at {re.escape(base)}",
        "🚀 Testing Async Inference with Callbacks",
        f"   Miner Server: {re.escape(service.url)}",
        f"   Callback URL: {re.escape(base)}/callback",
        "",
        "📝 Callback delivered before expiry",
        "   ✅ Job submitted: .+",
        "   📋 Status: queued",
        "   💬 Message: .+",
        "   🎯 Final status: completed",
        "   📬 Callback received",
        "      ↳ Secret header: test-secret",
        f"      ↳ Image stored at: {re.escape(str(tmp_path))}.+\\.png",
        "",
        "📊 Test Summary:",
        "- Total tests: 1",
        "- Passed: 1",
        f"- Callback dashboard: {re.escape(base)}",
    ]
    lines = result.stdout.splitlines()
    assert len(lines) == len(expected), result.stdout
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line
    assert Path(lines[13].split(": ")[1]).is_file()


def test_the_load_checks_run_by_their_numbers(kit: Kit, service: FaultyService, tmp_path: Path) -> None:
    path = tmp_path / "kit.json"
    flags = ("--jobs", "2", "--sequential", "1", "--no-reference", "--skip", "contamination", "--skip", "interference")
    result = kit("stress", "--miner-url", service.url, "--json", str(path), *flags, *SMALL)
    assert result.exit_code == 0, result.output
    assert "STRESS TEST RESULTS" in result.stdout
    assert "Valid images: 2" in result.stdout
    report = json.loads(path.read_text())
    assert [len(check["jobs"]) for check in report["checks"]] == [2, 1, 0]
    assert report["checks"][-1]["verdict"] == "passed"
    assert report["settings"]["expiry_minutes"] == 10


def test_a_soak_submits_at_its_rate(kit: Kit, service: FaultyService, tmp_path: Path) -> None:
    path = tmp_path / "kit.json"
    result = kit("soak", "--rate", "2", "--duration", "2", "--miner-url", service.url, "--json", str(path), *SMALL)
    assert result.exit_code == 0, result.output
    check, callbacks = json.loads(path.read_text())["checks"]
    assert check["name"] == "soak"
    assert check["figures"]["jobs"] >= 4
    assert callbacks["figures"]["callbacks"] == check["figures"]["jobs"]


def _app(root: Response, health: Response) -> Starlette:
    async def answer_root(_: Request) -> Response:
        return root

    async def answer_health(_: Request) -> Response:
        return health

    return Starlette(routes=[Route("/", answer_root), Route("/health", answer_health), READY])


@pytest.mark.parametrize(
    ("root", "health", "words"),
    [
        (PlainTextResponse("hello"), PlainTextResponse("", 404), ("no service of this protocol", "Another program")),
        (
            JSONResponse({"name": "Darkroom", "version": "1"}),
            JSONResponse({"status": "unavailable", "problems": ["no replica runs"]}, 503),
            ("takes no jobs", "no replica runs"),
        ),
        (JSONResponse({"detail": "who are you"}, 401), PlainTextResponse("", 401), ("credentials", "--header")),
    ],
)
def test_whoever_is_no_service_to_check_is_told_from_one(
    kit: Kit, root: Response, health: Response, words: tuple[str, ...]
) -> None:
    with BackgroundServer(_app(root, health), probe_path="/ready") as server:
        result = kit("run", "--miner-url", server.url)
    assert result.exit_code == 2
    assert server.url in result.stderr
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:{free}", "nothing listens"),
        ("http://no-such-host.invalid:8091", "is not known here"),
    ],
)
def test_nobody_there_exits_2_with_the_address_and_what_to_try(kit: Kit, base: str, url: str, words: str) -> None:
    url = url.format(free=base.rsplit(":", 1)[1])
    result = kit("--miner-url", url)
    assert result.exit_code == 2
    assert url in result.stderr
    assert words in result.stderr
    assert "--miner-url or ASYNC_MINER_URL" in result.stderr
    assert result.stdout == ""


def test_a_header_goes_with_every_request(kit: Kit) -> None:
    seen = []

    async def answer(request: Request) -> Response:
        seen.append(request.headers.get("authorization"))
        return JSONResponse({"status": "unavailable"}, 503)

    routes = [Route("/", answer), Route("/health", answer), READY]
    with BackgroundServer(Starlette(routes=routes), probe_path="/ready") as server:
        kit("run", "--miner-url", server.url, "--header", "Authorization: Bearer x")
    assert set(seen) == {"Bearer x"}


def test_a_port_that_is_taken_exits_2_and_says_how_to_go_on(service: FaultyService) -> None:
    with CallbackServer() as other:
        arguments = ["run", "--miner-url", service.url, "--callback-base", other.url]
        result = CliRunner().invoke(app, [*arguments, "--callback-bind-host", "127.0.0.1"])
    assert result.exit_code == 2
    assert str(other.port) in result.stderr
    assert "--no-auto-callback" in result.stderr


def test_a_receiver_elsewhere_is_used_when_told(service: FaultyService, tmp_path: Path) -> None:
    flags = ["--no-auto-callback", "--only", "protocol", "--pictures", str(tmp_path), *SMALL]
    with CallbackServer(secret="test-secret") as receiver:
        result = CliRunner().invoke(app, ["--miner-url", service.url, "--callback-base", receiver.url, *flags])
        assert len(receiver.entries()) == 1
    assert result.exit_code == 0, result.output
    assert "Starting local callback server" not in result.stdout
    result = CliRunner().invoke(app, ["--miner-url", service.url, "--callback-base", receiver.url, *flags])
    assert result.exit_code == 2
    assert receiver.url in result.stderr


@pytest.mark.parametrize(("token", "verdict"), [("t0ken", "passed"), ("", "skipped")])
def test_a_receiver_elsewhere_misbehaves_for_whoever_has_its_control_token(
    token: str, verdict: str, service: FaultyService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASYNC_CALLBACK_CONTROL_TOKEN", token)
    # As for a caller on another machine.
    monkeypatch.setattr(control, "_is_local", lambda _: False)
    path = tmp_path / "kit.json"
    flags = ["--no-auto-callback", "--only", "failing-target", "--pictures", str(tmp_path), "--json", str(path)]
    with CallbackServer(secret="test-secret", control_token="t0ken") as receiver:
        CliRunner().invoke(app, ["--miner-url", service.url, "--callback-base", receiver.url, *flags, *SMALL])
    (check,) = json.loads(path.read_text())["checks"]
    assert check["verdict"] == verdict
    assert ("ASYNC_CALLBACK_CONTROL_TOKEN" in (check["note"] or "")) == (verdict == "skipped")


def test_only_skipped_checks_exit_2_because_nothing_was_checked(kit: Kit, service: FaultyService) -> None:
    result = kit("--miner-url", service.url, "--only", "job-timeout", *SMALL)
    assert result.exit_code == 2
    assert "- Total tests: 0" in result.stdout
    assert "Nothing could be checked" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "--only", "protokoll"), "There are: protocol,"),
        (("run", "--only", "protocol", "--skip", "protocol"), "leave no check"),
        (("run", "--header", "Bearer"), "Write it as 'Name: value'"),
        (("run", "--header", "A: b\r\nC: d"), "on one line"),
        (("run", "--header", "Ä: x"), "in ASCII"),
        (("run", "--header", "A: \N{SNOWMAN}"), "in ASCII"),
        (("run", "--header", "A B: x"), "cannot be sent"),
        (("run", "--prompt", " "), "--prompt is empty"),
        (("run", "--prompt", "a \udcff star"), "no UTF-8"),
        (("run", "--miner-url", "localhost:8091"), "no base URL"),
        (("run", "--miner-url", "http://host:99999"), "ASYNC_MINER_URL: Port out of range"),
        (("run", "--miner-url", "http://user:s3cret@host"), "must not hold credentials"),
        (("run", "--json", "-"), "Name a file"),
        (("run", "--json", "/proc/no/report.json"), "cannot be written"),
        (("run", "--steps", "many"), "Invalid value"),
        (("walk",), "No such command"),
    ],
)
def test_wrong_usage_exits_2_with_a_sentence(kit: Kit, arguments: tuple[str, ...], words: str) -> None:
    result = CliRunner().invoke(app, list(arguments)) if arguments == ("walk",) else kit(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert "s3cret" not in result.stderr


def test_a_variable_that_is_no_number_exits_2_and_is_named(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRESS_TEST_CONCURRENT", "many")
    result = kit("stress")
    assert result.exit_code == 2
    assert "STRESS_TEST_CONCURRENT" in result.stderr


def test_the_environment_names_the_service_and_a_flag_goes_before_it(
    kit: Kit, service: FaultyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASYNC_MINER_URL", service.url)
    assert kit("--only", "unknown-id", *SMALL).exit_code == 0
    monkeypatch.setenv("ASYNC_MINER_URL", "http://127.0.0.1:1")
    assert kit("--only", "unknown-id", "--miner-url", service.url, *SMALL).exit_code == 0


def test_the_training_switch_leaves_the_interference_check_out(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "interference" in kit("stress", "--list").stdout
    monkeypatch.setenv("ENABLE_TRAINING", "false")
    assert "interference" not in kit("stress", "--list").stdout


def test_every_check_is_listed_with_what_it_demands(kit: Kit) -> None:
    lines = kit("--list").stdout.splitlines()
    assert lines[0].split() == ["protocol", "Callback", "delivered", "before", "expiry"]
    assert len(lines) > 10
    assert all(re.fullmatch(r"[a-z-]+ +\S.+", line) for line in lines)


def test_pictures_are_validated_with_an_exit_code(service: FaultyService, tmp_path: Path, kit: Kit) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    kit("--miner-url", service.url, "--only", "protocol", *SMALL)
    good.write_bytes(next((tmp_path / "pictures" / "protocol").glob("*.png")).read_bytes())
    bad.write_bytes(good.read_bytes()[:2000])
    sizes = ("--width", "128", "--height", "128")
    assert CliRunner().invoke(app, ["validate", str(good), *sizes]).exit_code == 0
    result = CliRunner().invoke(app, ["validate", str(good), str(bad), *sizes])
    assert result.exit_code == 1
    assert "INVALID" in result.stdout
    assert CliRunner().invoke(app, ["validate", str(tmp_path / "nothing")]).exit_code == 2
    listed = json.loads(CliRunner().invoke(app, ["validate", str(tmp_path), "--any-size", "--json"]).stdout)
    assert {Path(one["name"]).name for one in listed} >= {"good.png", "bad.png"}


def _started(module: str, *arguments: str, folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def _read_until(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdout is not None
    read = ""
    for line in process.stdout:
        read += line
        if word in line:
            return read
    _, errors = process.communicate(timeout=PATIENCE_S)
    raise AssertionError(f"{word!r} never came: {read}{errors}")


def test_ctrl_c_exits_130_and_reports_what_was_found_until_then(base: str, tmp_path: Path) -> None:
    path = tmp_path / "kit.json"
    with FaultyService(step_s=30.0) as service:
        arguments = ("--miner-url", service.url, "--callback-base", base, "--callback-bind-host", "127.0.0.1")
        checks = ("--only", "unknown-id", "--only", "protocol", "--json", str(path))
        process = _started("stress.cli", "run", *arguments, *checks, *SMALL, folder=tmp_path)
        _read_until(process, "Job submitted")
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, errors
    assert "- Total tests: 0" in output
    assert "Traceback" not in errors
    report = KitReport.model_validate_json(path.read_text())
    assert report.settings["interrupted"] is True
    (check,) = report.checks
    assert check.verdict is Verdict.SKIPPED
    assert "1 submitted" in (check.note or "")


def test_the_receiver_runs_until_ctrl_c(tmp_path: Path) -> None:
    process = _started("stress.cli", "callback-server", "--host", "127.0.0.1", "--port", "0", folder=tmp_path)
    line = _read_until(process, "listening").strip()
    assert re.fullmatch(r"Callback server listening on http://127\.0\.0\.1:\d+", line)
    assert httpx.get(f"{line.split()[-1]}/callbacks", trust_env=False).json()["callbacks"] == []
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert output == "Stopping callback server...\n"
    assert process.returncode == 0


@pytest.mark.parametrize("module", ["stress", "tests.e2e.async_inference.cli"])
def test_other_names_are_the_same_command_line(module: str, tmp_path: Path) -> None:
    process = _started(module, "stress", "--list", folder=tmp_path)
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert output == CliRunner().invoke(app, ["stress", "--list"]).stdout
