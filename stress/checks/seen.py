"""Which request each picture was drawn for, over all checks of a call of the kit: another job must not get it."""

import json

from stress.checks.job_run import JobRun
from stress.checks.outcome import Fault
from stress.wire import InferenceRequest

DRAWN_FIELDS = (
    "prompt",
    "negative_prompt",
    "model",
    "lora_path",
    "width",
    "height",
    "num_inference_steps",
    "guidance_scale",
    "seed",
)
"""What decides about a picture; the rest of a request says where it goes."""
_OF_WHOSE_IT_IS = frozenset({Fault.SWAPPED_PICTURE, Fault.STALE_PICTURE, Fault.WRONG_PICTURE})


def key_of(request: InferenceRequest) -> str:
    """Return what decides about the picture of this request, as JSON; no adapter is the same as an empty one."""
    fields = request.model_dump(mode="json", exclude_none=True, include=set(DRAWN_FIELDS))
    return json.dumps({name: value for name, value in fields.items() if value != ""}, sort_keys=True)


class SeenPictures:
    """The first job that got each picture, by the picture's SHA-256."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[str, str]] = {}

    def note(self, run: JobRun) -> None:
        """Remember the picture that the job got; if a job with another request had it before, that is a finding.

        A job that was found to have another's picture already is left out.
        """
        picture = run.trace.picture if run.trace is not None else None
        if picture is None or any(finding.fault in _OF_WHOSE_IT_IS for finding in run.findings):
            return
        key = key_of(run.request)
        first_key, job_id = self._first.setdefault(picture.sha256, (key, run.job_id))
        if first_key != key:
            sentence = f"The job got the very same picture as the job {job_id} before, which asked for another."
            run.found(Fault.STALE_PICTURE, sentence)
