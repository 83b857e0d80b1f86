"""A report such as the kit makes: good jobs, faults of several kinds, and a service that sends markup as its words."""

import io
import random
from base64 import b64encode
from datetime import UTC, datetime

from PIL import Image, ImageDraw

from stress.checks.outcome import CheckReport, Fault, Finding, JobTrace, KitReport, PictureFacts, Verdict
from stress.wire import CallbackReport, JobState, JobStatus

HOSTILE = "<img src=x onerror=alert(1)>"


def sample_report(*, jobs: int = 12, hostile: bool = True) -> KitReport:
    """Return a report with one check that passed, one skipped and two that failed."""
    chance = random.Random(7)  # noqa: S311 - made-up measurements
    concurrent = tuple(_job(index, chance) for index in range(jobs))
    partial, silent = concurrent[3], concurrent[5]
    protocol = _job(100, chance)
    if hostile:
        protocol = protocol.model_copy(update={"job_id": HOSTILE, "label": HOSTILE, "request": {"prompt": HOSTILE}})
    checks = (
        CheckReport(
            name="protocol",
            title="Callback delivered before expiry",
            verdict=Verdict.PASSED,
            seconds=6.2,
            jobs=(protocol,),
            figures={"submit_p50_ms": 4.218, "final_p50_s": 5.31},
        ),
        CheckReport(
            name="concurrent",
            title="Many jobs at once",
            verdict=Verdict.FAILED,
            seconds=61.5,
            jobs=(
                *concurrent[:3],
                partial.model_copy(update={"picture": _facts(3, chance, valid=False)}),
                concurrent[4],
                silent.model_copy(update={"callbacks": 0, "callback_s": None}),
                *concurrent[6:],
            ),
            findings=(
                Finding(
                    fault=Fault.PARTIAL_PICTURE,
                    sentence="Partial render detected: 96.1% of bottom rows are blank",
                    job_id=partial.job_id,
                ),
                Finding(
                    fault=Fault.MISSING_CALLBACK,
                    sentence="No callback arrived within 90 s; the job's section says 'failed' (connection refused).",
                    job_id=silent.job_id,
                ),
            ),
            figures={
                "jobs": jobs,
                "submit_p50_ms": 5.1,
                "submit_p99_ms": 31.77,
                "final_p50_s": 21.4,
                "final_p99_s": 44.02,
                "callback_p50_s": 21.6,
                "jobs_per_s": 0.2431,
            },
        ),
        CheckReport(
            name="steady_rate",
            title="A steady rate over time",
            verdict=Verdict.FAILED,
            seconds=600,
            findings=(
                Finding(
                    fault=Fault.GROWING_MEMORY,
                    sentence=f"Memory rose by 3.1 MiB a minute. {HOSTILE if hostile else ''}",
                ),
            ),
            series={
                "memory_mib": tuple((float(s), 410 + s * 0.05 + chance.random() * 6) for s in range(0, 600, 5)),
                "final_s": tuple((float(s), 5 + chance.random()) for s in range(0, 600, 10)),
            },
        ),
        CheckReport(
            name="cancel",
            title="Cancelling a job",
            verdict=Verdict.SKIPPED,
            seconds=0.1,
            note="The service has no route for it (HTTP 404).",
        ),
    )
    return KitReport(
        kit_version="0.1.0",
        command="stress",
        service_url="http://gpu-7.example:8091",
        service_name="Darkroom",
        service_version="0.1.0",
        callback_base="http://192.0.2.4:8092",
        started_at=datetime(2026, 3, 1, 12, 30, tzinfo=UTC),
        seconds=671.4,
        settings={"width": 1024, "height": 1024, "steps": 20, "adapters": ["base model", "styles/ink.safetensors"]},
        checks=checks,
    )


def _job(index: int, chance: random.Random) -> JobTrace:
    submitted = 0.02 * index
    final = submitted + 4.5 + 3.6 * (index % 100) + chance.random()
    job_id = f"kit-concurrent-{index}-{chance.randrange(16**12):012x}"
    delivered = CallbackReport(status="delivered", status_code=200, payload_status="completed")
    return JobTrace(
        job_id=job_id,
        label=str(index),
        request={"prompt": "a quiet harbour at dawn, watercolour", "seed": 42 + index, "width": 1024, "height": 1024},
        submitted_s=submitted,
        submit_took_s=0.005,
        final_s=final,
        callback_s=final + 0.2 + chance.random(),
        status=JobStatus(job_id=job_id, status=JobState.COMPLETED, callback=delivered),
        picture=_facts(index, chance),
        callbacks=1,
    )


def _facts(index: int, chance: random.Random, *, valid: bool = True) -> PictureFacts:
    image = Image.new("RGB", (160, 160), (40 + index * 13 % 200, 90, 200 - index * 11 % 160))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y, r = chance.randrange(160), chance.randrange(160), chance.randrange(8, 40)
        draw.ellipse((x - r, y - r, x + r, y + r), (chance.randrange(256), chance.randrange(256), 120))
    if not valid:
        draw.rectangle((0, 110, 160, 160), (0, 0, 0))
    data = io.BytesIO()
    image.save(data, "JPEG")
    return PictureFacts(
        sha256=f"{index:064x}",
        size_bytes=1_200_000 + index,
        width=1024,
        height=1024,
        variance=3200.5,
        blank_percentage=0.01,
        valid=valid,
        reason=None if valid else "Partial render detected: 96.1% of bottom rows are blank",
        thumbnail=f"data:image/jpeg;base64,{b64encode(data.getvalue()).decode()}",
    )
