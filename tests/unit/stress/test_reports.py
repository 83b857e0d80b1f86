"""The reports for programs and build servers, and the console."""

import json
import re
from pathlib import Path

import pytest
from junitparser import Failure, JUnitXml, Skipped
from sample_reports import HOSTILE, sample_report

from stress.checks.outcome import Fault, Finding, KitReport, Verdict
from stress.reports import plots, words
from stress.reports.console import ConsoleProgress, print_line, print_summary, print_table
from stress.reports.explanations import EXPLANATIONS
from stress.reports.json_report import write_json
from stress.reports.junit import write_junit
from stress.wire import JobState, JobStatus


def test_the_json_report_reads_back_as_the_same_report(tmp_path: Path) -> None:
    report = sample_report()
    write_json(report, tmp_path / "report.json")
    text = (tmp_path / "report.json").read_text()
    assert KitReport.model_validate_json(text) == report
    assert json.loads(text)["checks"][1]["findings"][0]["fault"] == "partial_picture"


def test_junit_has_a_case_per_check_and_a_failure_per_finding(tmp_path: Path) -> None:
    write_junit(sample_report(), tmp_path / "junit.xml")
    (suite,) = JUnitXml.fromfile(str(tmp_path / "junit.xml"))
    assert (suite.tests, suite.failures, suite.skipped, suite.errors) == (4, 2, 1, 0)
    cases = {case.name: case for case in suite}
    assert list(cases) == ["protocol", "concurrent", "steady_rate", "cancel"]
    assert cases["protocol"].is_passed
    assert [type(result) for result in cases["concurrent"].result] == [Failure, Failure]
    assert [result.type for result in cases["concurrent"].result] == ["partial_picture", "missing_callback"]
    assert isinstance(cases["cancel"].result[0], Skipped)
    assert HOSTILE in cases["steady_rate"].result[0].text


def test_junit_is_whole_whatever_a_service_sends(tmp_path: Path) -> None:
    report = sample_report()
    nasty = Finding(fault=Fault.FAILED_JOB, sentence="]]> \x00\x1b[31m \ufffe &amp; <", job_id="a\x08b")
    check = report.checks[0].model_copy(update={"findings": (nasty,), "verdict": Verdict.FAILED})
    write_junit(report.model_copy(update={"checks": (check,)}), tmp_path / "junit.xml")
    (suite,) = JUnitXml.fromfile(str(tmp_path / "junit.xml"))
    (case,) = suite
    assert "&amp; <" in case.result[0].text


def test_the_summary_has_the_specified_lines_and_leaves_skipped_checks_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(sample_report())
    assert capsys.readouterr().out.splitlines() == [
        "",
        "📊 Test Summary:",
        "- Total tests: 3",
        "- Passed: 1",
        "- Callback dashboard: http://192.0.2.4:8092",
    ]


def test_the_table_names_every_check_with_its_first_finding(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(sample_report())
    shown = capsys.readouterr().out
    assert "✓ passed" in shown
    assert "partial_picture: Partial render detected: 96.1% of bottom rows are blank (and 1 more)" in shown
    assert "The service has no route for it" in shown
    assert HOSTILE in re.sub(r"\s*│\s*\n\s*│\s*│\s*│\s*│\s*", " ", shown)
    assert "\x1b" not in shown


def test_a_line_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_line("💬 Message: \x1b]0;owned\x07 \x9b31m \u202eko")
    assert capsys.readouterr().out == "💬 Message: \ufffd]0;owned\ufffd \ufffd31m \ufffdko\n"


def test_without_a_terminal_progress_writes_lines_only(capsys: pytest.CaptureFixture[str]) -> None:
    report = sample_report().checks[0]
    with ConsoleProgress() as progress:
        progress.check_started("protocol", "A title", 1)
        progress.job_submitted("protocol", "job")
        progress.job_moved("protocol", "job", JobStatus(job_id="job", status=JobState.PROCESSING))
        progress.line("✅ Job submitted: job")
        progress.job_ended("protocol", "job", good=True)
        progress.check_ended(report)
        progress.job_ended("protocol", "job", good=True)
    written = capsys.readouterr()
    assert written.out == "✅ Job submitted: job\n"
    assert written.err == ""


def test_a_check_that_did_not_end_says_where_its_jobs_stand() -> None:
    progress = ConsoleProgress(live=False)
    progress.check_started("load", "Many jobs", 3)
    for job_id in ("a", "b", "c"):
        progress.job_submitted("load", job_id)
    progress.job_moved("load", "b", JobStatus(job_id="b", status=JobState.PROCESSING))
    progress.job_ended("load", "a", good=False)
    (stand,) = progress.unfinished()
    assert stand == "3 submitted, 1 processing, 1 queued, 1 bad, 1 finished"


def test_every_fault_is_explained_to_an_operator() -> None:
    assert set(EXPLANATIONS) == set(Fault)
    for explanation in EXPLANATIONS.values():
        assert explanation.title
        assert explanation.meaning.endswith(".")
        assert explanation.look_at.endswith(".")


def test_the_documentation_has_every_fault() -> None:
    page = (Path(__file__).parents[3] / "docs" / "validators.md").read_text()
    assert [fault for fault in Fault if f"| `{fault}` |" not in page] == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("submit_p99_ms", ("submit p99", "ms")),
        ("jobs_per_s", ("jobs", "per s")),
        ("memory_mib", ("memory", "MiB")),
        ("jobs", ("jobs", "")),
    ],
)
def test_a_figure_is_said_in_words_and_its_unit(name: str, said: tuple[str, str]) -> None:
    assert words.figure_words(name) == said


@pytest.mark.parametrize(
    ("value", "said"), [(0.0421, "0.0421"), (999.4, "999"), (999.6, "1,000"), (-999.6, "-1,000"), (123456.7, "123,457")]
)
def test_a_large_number_is_written_without_an_exponent(value: float, said: str) -> None:
    assert words.number(value) == said


def test_a_timeline_has_a_row_per_accepted_job_inside_the_drawing() -> None:
    check = sample_report().checks[1]
    drawn = plots.timeline(check)
    assert drawn is not None
    assert len(drawn.rows) == 12
    assert [row.bad for row in drawn.rows].count(True) == 2
    for row in drawn.rows:
        assert row.y + plots.ROW_HEIGHT <= drawn.bottom
        assert all(plots.MARGIN_LEFT <= s.x <= s.x + s.width <= plots.WIDTH for s in row.spans)


def test_a_crowd_of_jobs_has_no_timeline_and_few_jobs_no_distribution() -> None:
    check = sample_report(jobs=plots.MAX_TIMELINE_JOBS + 1).checks[1]
    assert plots.timeline(check) is None
    assert plots.distribution(check) is not None
    assert plots.distribution(sample_report().checks[0]) is None


def test_the_distribution_ends_at_the_share_of_jobs_that_got_so_far() -> None:
    drawn = plots.distribution(sample_report().checks[1])
    assert drawn is not None
    ends = {curve.name: float(curve.points.split(",")[-1]) for curve in drawn.curves}
    assert ends["final"] == plots.MARGIN_TOP
    assert ends["callback"] > ends["final"]


@pytest.mark.parametrize("points", [(), ((0.0, 1.0),), ((0.0, float("nan")), (1.0, float("inf")))])
def test_a_curve_of_less_than_two_finite_points_is_not_drawn(points: tuple[tuple[float, float], ...]) -> None:
    assert plots.series("memory_mib", points) is None


def test_a_long_curve_is_thinned_and_starts_at_zero() -> None:
    drawn = plots.series("memory_mib", [(float(s), 0.0) for s in range(100_000)])
    assert drawn is not None
    assert len(drawn.curves[0].points.split()) <= plots.MAX_POINTS
    assert drawn.title == "Memory, MiB"
    assert drawn.y_ticks[0].label == "0"
