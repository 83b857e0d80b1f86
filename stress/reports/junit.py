"""The report for build servers: JUnit's XML, one case per check."""

import re
from pathlib import Path

from junitparser import Failure, JUnitXml, Skipped, TestCase, TestSuite

from stress.checks.outcome import CheckReport, KitReport, Verdict
from stress.reports import words

# What XML 1.0 cannot hold, not even escaped: https://www.w3.org/TR/xml/#charsets
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(report: KitReport, path: Path) -> None:
    """Write the report as JUnit XML: each finding a failure of its check's case. Raises OSError."""
    suite = TestSuite(_plain(f"darkroom.stress.{report.command}"))
    suite.timestamp = report.started_at.isoformat()
    suite.add_property("service_url", _plain(report.service_url))
    for check in report.checks:
        suite.add_testcase(_case(check, report.command))
    suite.time = round(report.seconds, 3)
    # In cases, as build servers count; the library counts every finding.
    suite.failures = words.count(report.checks, Verdict.FAILED)
    document = JUnitXml("darkroom.stress")
    document.add_testsuite(suite)
    document.write(str(path), pretty=True)


def _case(check: CheckReport, command: str) -> TestCase:
    case = TestCase(_plain(check.name), classname=f"darkroom.stress.{command}", time=round(check.seconds, 3))
    if check.verdict is Verdict.SKIPPED:
        case.result = [Skipped(_plain(check.note or "skipped"))]
    else:
        case.result = [_failure(finding.fault, finding.sentence, finding.job_id) for finding in check.findings]
    figures = "\n".join(f"{name} = {value:g}" for name, value in check.figures.items())
    case.system_out = _plain("\n".join(filter(None, [check.title, check.note, figures])))
    return case


def _failure(fault: str, sentence: str, job_id: str | None) -> Failure:
    failure = Failure(_plain(sentence), type_=fault)
    failure.text = _plain(sentence if job_id is None else f"job {job_id}: {sentence}")
    return failure


def _plain(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
