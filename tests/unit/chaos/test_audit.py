"""The audit of the chaos run finds each broken promise, and none where all were kept."""

from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import pytest

from stress.receiver.entries import CallbackEntry, EntryKind
from tests.chaos.audit import Ended, audit
from tests.chaos.faults import Disturbance, Fault, Kind, faults_of, schedule
from tests.chaos.load import Accepted, Seen
from tests.chaos.recovery import Recovery, summary

AT = 1_900_000_000.0
RIGHT, WRONG = "a" * 64, "b" * 64
JOB = Accepted("job", AT, RIGHT)
DONE = Seen("completed", RIGHT, None)
ENDED = Ended(DONE, RIGHT, "delivered")
WRITTEN = (("job", "completed"),)


def fault(after_s: float, kind: Kind = Kind.TRACKER) -> Disturbance:
    """Return one that was done so long after the job was accepted."""
    return Disturbance(kind, AT + after_s)


def callback(**changed: Any) -> CallbackEntry:
    entry = CallbackEntry(
        received_at=datetime.fromtimestamp(AT + 5, UTC),
        answered_status=200,
        job_id="job",
        status="completed",
        completed_at="",
        secret_ok=True,
        has_image=True,
        sha256=RIGHT,
        webhook_id="msg",
        webhook_attempt=1,
    )
    return entry.model_copy(update=changed)


def found(
    job: Accepted = JOB,
    ended: Ended = ENDED,
    finals: tuple[Seen, ...] = (),
    callbacks: tuple[CallbackEntry, ...] = (callback(),),
    faults: tuple[Disturbance, ...] = (),
    written: tuple[tuple[str, str], ...] = WRITTEN,
) -> list[str]:
    return [one.what for one in audit([job], {"job": ended}, {"job": set(finals)}, written, callbacks, faults)]


def test_kept_promises_are_not_complained_about() -> None:
    assert found() == []
    assert found(finals=(DONE,)) == []
    again = callback(webhook_attempt=2, kind=EntryKind.REPEAT)
    assert found(callbacks=(callback(), again), faults=(fault(2),)) == []
    assert found(callbacks=(callback(answered_status=None), again)) == []
    expiring = replace(JOB, expiry=AT + 1)
    assert found(expiring, replace(ENDED, callback_status="expired"), callbacks=()) == []
    refused = callback(answered_status=503, received_at=datetime.fromtimestamp(AT + 0.5, UTC))
    failed, deaf = replace(ENDED, callback_status="failed"), fault(-9, Kind.RECEIVER)
    assert found(expiring, failed, callbacks=(refused,), faults=(deaf,)) == []
    assert found(expiring, replace(ENDED, callback_status="error"), callbacks=(), faults=(deaf,)) == []


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"ended": Ended(None, None, None)}, "lost"),
        ({"ended": replace(ENDED, seen=Seen("failed", None, "poisoned"))}, "not completed"),
        ({"finals": (Seen("failed", None, "cancelled"),)}, "two final states"),
        ({"finals": (Seen("completed", WRONG, None),)}, "two final states"),
        ({"ended": replace(ENDED, downloaded_sha256=WRONG)}, "wrong picture"),
        ({"ended": replace(ENDED, downloaded_sha256=None)}, "wrong picture"),
        ({"ended": Ended(Seen("completed", WRONG, None), WRONG, "delivered")}, "wrong picture"),
        ({"callbacks": (callback(sha256=WRONG),)}, "wrong picture in a callback"),
        ({"callbacks": (callback(sha256=None),)}, "wrong picture in a callback"),
        ({"callbacks": (callback(secret_ok=False),)}, "callback with a wrong secret"),
        ({"callbacks": ()}, "no callback"),
        ({"callbacks": (), "job": replace(JOB, expiry=AT + 99)}, "no callback"),
        (
            {"callbacks": (), "job": replace(JOB, expiry=AT + 1), "ended": replace(ENDED, callback_status="failed")},
            "no callback",
        ),
        (
            {"callbacks": (), "ended": replace(ENDED, callback_status="error"), "faults": (fault(-9, Kind.RECEIVER),)},
            "no callback",
        ),
        (
            {
                "callbacks": (),
                "job": replace(JOB, expiry=AT + 1),
                "ended": replace(ENDED, callback_status="failed"),
                "faults": (fault(0), fault(2, Kind.RECEIVER), fault(-41, Kind.RECEIVER)),
            },
            "no callback",
        ),
        ({"callbacks": (callback(status="failed", sha256=None),)}, "callback with another state"),
        ({"callbacks": (callback(), callback(webhook_id="msg2")), "faults": (fault(1),)}, "two deliveries"),
        ({"written": ()}, "not one final state"),
        ({"written": WRITTEN * 2}, "not one final state"),
        ({"callbacks": (callback(answered_status=500),)}, "callback said to be delivered"),
        ({"callbacks": (callback(), callback(kind=EntryKind.DUPLICATE)), "faults": (fault(1),)}, "duplicate callback"),
        ({"callbacks": (callback(), callback(kind=EntryKind.REPEAT))}, "more repeats than faults"),
        (
            {"callbacks": (callback(), callback(kind=EntryKind.REPEAT)), "faults": (fault(9),)},
            "more repeats than faults",
        ),
        ({"job": replace(JOB, expiry=AT + 4)}, "callback after expiry"),
        ({"callbacks": (callback(), callback(job_id="other"))}, "callback of an unknown job"),
    ],
)
def test_each_broken_promise_is_found(changed: dict[str, Any], what: str) -> None:
    assert what in found(**changed)


def test_a_job_that_was_accepted_twice_is_found() -> None:
    twice = audit([JOB, JOB], {"job": ENDED}, {}, WRITTEN, [callback(), callback(webhook_attempt=2)], [fault(1)])
    assert "accepted twice" in [one.what for one in twice]


def test_a_seed_repeats_the_order_and_every_fault_has_its_turn() -> None:
    kinds = tuple(Kind)
    first, again = (list(islice(schedule(kinds, 7), 60)) for _ in range(2))
    assert first == again
    assert set(first[: len(faults_of(kinds))]) == set(faults_of(kinds))
    assert list(islice(schedule(kinds, 8), 60)) != first


def test_recoveries_are_summed_up_by_kind_and_action() -> None:
    kill = next(fault for fault in faults_of((Kind.TRACKER,)))
    stop = Fault(kill.kind, faults_of((Kind.TRACKER,))[-1].action, 2.0)
    rows = summary([Recovery(kill, 1.0, 2.0), Recovery(kill, 3.0, 4.0), Recovery(stop, 5.0, 6.0)])
    assert [(row["action"], row["count"], row["accepted_p50_s"], row["picture_max_s"]) for row in rows] == [
        ("kill", 2, 2.0, 4.0),
        ("stop 2 s", 1, 5.0, 6.0),
    ]
