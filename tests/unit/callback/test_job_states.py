from dataclasses import replace

import pytest

from callback.records import DeliveryView, JobView, artifact_key
from callback.states import FINAL, OPEN, TRANSITIONS, DeliveryState, JobState, allowed

VIEW = JobView(
    key="0a1b",
    owner="anyone",
    job_id="job-1",
    kind="text_to_image",
    model="sd",
    state=JobState.COMPLETED,
    seq=1,
    attempt=1,
    request_json="{}",
    fingerprint="f",
    queued_at=100.0,
    finished_at=200.0,
    has_callback=True,
)
DELIVERY = DeliveryView(
    DeliveryState.PENDING, "msg_0a1b", attempts=1, final=False, settles_by=230.0, payload_status="completed"
)


@pytest.mark.parametrize("state", FINAL)
def test_nothing_follows_a_final_state(state: JobState) -> None:
    assert TRANSITIONS[state] == frozenset()


def test_every_state_has_its_transitions() -> None:
    assert set(TRANSITIONS) == set(JobState) == OPEN | FINAL


@pytest.mark.parametrize(
    ("before", "after", "answer"),
    [
        (JobState.QUEUED, JobState.PROCESSING, True),
        (JobState.QUEUED, JobState.COMPLETED, False),
        (JobState.QUEUED, JobState.FAILED, True),
        (JobState.QUEUED, JobState.TIMEOUT, True),
        (JobState.QUEUED, JobState.QUEUED, False),
        (JobState.PROCESSING, JobState.QUEUED, True),
        (JobState.PROCESSING, JobState.COMPLETED, True),
        (JobState.PROCESSING, JobState.FAILED, True),
        (JobState.PROCESSING, JobState.TIMEOUT, True),
        (JobState.PROCESSING, JobState.PROCESSING, False),
    ],
)
def test_the_ways_from_an_open_state(before: JobState, after: JobState, answer: bool) -> None:
    assert allowed(before, after) is answer


def test_an_open_job_is_not_settled() -> None:
    assert not replace(VIEW, state=JobState.PROCESSING, delivery=None).settled(1e12)


def test_a_final_job_without_callback_is_settled_at_once() -> None:
    assert replace(VIEW, has_callback=False).settled(200.0)


def test_a_final_job_is_settled_by_its_first_attempt() -> None:
    assert not replace(VIEW, delivery=DELIVERY).settled(229.9)
    assert replace(VIEW, delivery=replace(DELIVERY, first_settled_at=201.0)).settled(201.0)


def test_a_final_job_is_settled_one_callback_timeout_after_its_end_whatever_the_receiver_does() -> None:
    assert replace(VIEW, delivery=DELIVERY).settled(230.0)


def test_attempts_never_share_an_artifact() -> None:
    assert artifact_key("0a1b", 1) != artifact_key("0a1b", 2)
