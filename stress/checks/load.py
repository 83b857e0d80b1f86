"""Many jobs at once, and many in rapid succession with adapters in turn."""

from itertools import cycle

from stress.checks.contamination import compare
from stress.checks.group import at_once, expiring, finish, load_report, submit
from stress.checks.guard import guarded
from stress.checks.jobs import JobRun, Watch
from stress.checks.outcome import CheckReport, Fault
from stress.checks.references import References
from stress.checks.session import Session
from stress.wire import JobState

PROMPTS = (
    "a red circle on a blue background",
    "a yellow star on a green background",
    "a purple square above an orange triangle",
    "a lighthouse on a cliff in the afternoon, oil painting",
    "a cute anime girl with blue hair, detailed, soft light",
)
"""None asks for black, white, dark or night: whoever draws that rightly would look like a broken renderer."""
CONCURRENT_SEED = 42
SEQUENTIAL_SEED = 100
SEQUENTIAL_GAP_S = 0.1
_RULE = "=" * 80


async def check_rapid_concurrent(session: Session, jobs: int, *, references: References | None = None) -> CheckReport:
    """Submit `jobs` jobs at once, and demand of each its own whole picture and one callback.

    With `references` each picture is compared with that of the same request drawn alone, which is done before.
    """
    title = f"{jobs} jobs at once"

    async def body(watch: Watch) -> CheckReport:
        requests = [
            watch.request(seed=CONCURRENT_SEED + index, label=f"{index}", prompt=prompt)
            for index, prompt in zip(range(jobs), cycle(PROMPTS), strict=False)
        ]
        drawn = await references.prepare(watch, requests) if references else []
        runs = await at_once(submit(watch, request, jobs_ahead=jobs) for request in expiring(watch, requests))
        await finish(watch, runs)
        await compare(runs, references)
        _print_concurrent(session, runs)
        return load_report(watch, title, runs, drawn)

    return await guarded(session, "rapid-concurrent", title, jobs if references is None else 2 * jobs, body)


async def check_rapid_sequential(session: Session, jobs: int, *, references: References | None = None) -> CheckReport:
    """Submit a job every 0.1 s, each with the next of the session's adapters, and demand what jobs at once must do."""
    title = f"{jobs} jobs in rapid succession"

    async def body(watch: Watch) -> CheckReport:
        requests = [
            watch.request(seed=SEQUENTIAL_SEED + index, label=f"{index}", prompt=prompt, lora_path=adapter or None)
            for index, prompt, adapter in zip(range(jobs), cycle(PROMPTS), cycle(session.adapters), strict=False)
        ]
        drawn = await references.prepare(watch, requests) if references else []
        runs = await at_once(
            submit(watch, request, after_s=index * SEQUENTIAL_GAP_S, jobs_ahead=jobs)
            for index, request in enumerate(expiring(watch, requests))
        )
        await finish(watch, runs)
        await compare(runs, references)
        valid = sum(run.good and run.sha256 is not None for run in runs)
        session.progress.line(f"Valid: {valid}/{len(runs)}")
        session.progress.line(f"Invalid: {len(runs) - valid}/{len(runs)}")
        note = None if len(session.adapters) > 1 else "Base model only: no adapters were named to switch between."
        return load_report(watch, title, runs, drawn, note=note)

    return await guarded(session, "rapid-sequential", title, jobs if references is None else 2 * jobs, body)


def _print_concurrent(session: Session, runs: list[JobRun]) -> None:
    say = session.progress.line
    for run in runs:
        say(_picture_line(run))
    pictured = [run for run in runs if run.sha256 is not None]
    invalid = [run for run in pictured if _picture_fault(run) is not None]
    for line in (_RULE, "STRESS TEST RESULTS", _RULE, ""):
        say(line)
    completed = sum(run.status is not None and run.status.status is JobState.COMPLETED for run in runs)
    say(f"Total jobs: {len(runs)}")
    say(f"Completed: {completed}")
    say(f"Valid images: {len(pictured) - len(invalid)}")
    say(f"Invalid/incomplete images: {len(invalid)}")
    say(f"No images: {len(runs) - len(pictured)}")
    if invalid:
        say("INVALID IMAGES DETECTED:")
    for run in invalid:
        fault = _picture_fault(run)
        say(f"  - {run.job_id}: {fault[1] if fault else ''}")


def _picture_line(run: JobRun) -> str:
    facts = run.trace.picture if run.trace else None
    fault = _picture_fault(run)
    if fault is not None:
        kind, reason = fault
        return f"❌ Job {run.job_id}: {'PARTIAL RENDER' if kind is Fault.PARTIAL_PICTURE else 'INVALID'} - {reason}"
    if facts is None:
        why = run.findings[0].sentence if run.findings else "no picture came"
        return f"❌ Job {run.job_id or run.label}: NO IMAGE - {why}"
    measured = f"variance={facts.variance or 0.0:.1f}, blank={100 * (facts.blank_percentage or 0.0):.1f}%"
    return f"✅ Job {run.job_id}: Valid image ({facts.size_bytes} bytes, {measured})"


_OF_THE_PICTURE = frozenset(
    {
        Fault.INVALID_PICTURE,
        Fault.PARTIAL_PICTURE,
        Fault.SWAPPED_PICTURE,
        Fault.STALE_PICTURE,
        Fault.WRONG_PICTURE,
        Fault.CHANGED_BYTES,
    }
)


def _picture_fault(run: JobRun) -> tuple[Fault, str] | None:
    found = next((finding for finding in run.findings if finding.fault in _OF_THE_PICTURE), None)
    return None if found is None or run.sha256 is None else (found.fault, found.sentence.removesuffix("."))
