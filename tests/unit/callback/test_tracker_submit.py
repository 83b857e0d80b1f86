import asyncio
from dataclasses import replace

import pytest

from callback.records import ClaimJobs, JobView, Submit
from callback.schema import idempotency_aliases, jobs
from callback.states import JobState
from tests.unit.callback.tracker_kit import Desk, StartDesk, new_job, rejected


async def test_an_accepted_job_is_in_the_store_before_its_answer(desk: Desk) -> None:
    view = await desk.submit()

    assert (view.state, view.attempt, view.queued_at) == (JobState.QUEUED, 0, desk.clock.now())
    assert desk.stored(view.key) == view


async def test_the_same_submission_sent_again_answers_the_same_job(desk: Desk) -> None:
    job = new_job()

    first, second = await desk.do_all(Submit(job), Submit(job))
    third = await desk.do(Submit(job))

    assert first == second == third
    assert len(desk.rows(jobs.select())) == 1


async def test_a_repeated_submission_tells_how_far_the_job_is_by_now(desk: Desk) -> None:
    job = new_job()
    await desk.do(Submit(job))
    await desk.renew(await desk.claim_one(), step=3)

    again = await desk.do(Submit(job))

    assert isinstance(again, JobView)
    assert (again.state, again.step) == (JobState.PROCESSING, 3)


async def test_the_same_id_with_the_same_body_answers_the_live_job(desk: Desk) -> None:
    first = await desk.submit()

    assert await desk.submit() == first


async def test_the_same_id_with_another_body_is_refused_while_the_job_lives(desk: Desk) -> None:
    await desk.submit()

    assert rejected(await desk.do(Submit(new_job(fingerprint="other")))) == "job_id_in_use"


async def test_two_owners_may_use_the_same_id(desk: Desk) -> None:
    mine = await desk.submit(owner="anyone")
    theirs = await desk.submit(owner="another", fingerprint="other")

    assert mine.key != theirs.key
    assert (await desk.tracker.get("anyone", "job-1")) == mine
    assert (await desk.tracker.get("another", "job-1")) == theirs


async def test_the_id_of_a_final_job_can_be_used_anew_and_the_old_record_stays(desk: Desk) -> None:
    old = await desk.submit()
    await desk.complete(await desk.claim_one())

    new = await desk.submit(fingerprint="other")

    assert new.key != old.key
    assert (await desk.view()).state is JobState.QUEUED
    assert desk.stored(old.key).state is JobState.COMPLETED


async def test_the_id_of_a_final_job_stays_taken_until_its_callback_is_settled_for_good(desk: Desk) -> None:
    await desk.submit(callback_url="http://192.0.2.1/callback")
    await desk.fail(await desk.claim_one())
    await desk.until_settled()

    assert rejected(await desk.do(Submit(new_job(fingerprint="other")))) == "job_id_in_use"

    desk.clock.advance(desk.config.callback_horizon_s)
    await desk.until(lambda view: view.delivery is not None and view.delivery.final)

    assert (await desk.submit(fingerprint="other")).state is JobState.QUEUED


async def test_an_idempotency_key_answers_the_job_that_it_made(desk: Desk) -> None:
    first = await desk.submit("made-up-1", idempotency_key="key")
    again = await desk.submit("made-up-2", idempotency_key="key")

    assert again == first


async def test_an_idempotency_key_answers_its_job_also_after_the_end(desk: Desk) -> None:
    first = await desk.submit("made-up-1", idempotency_key="key")
    await desk.complete(await desk.claim_one())

    again = await desk.submit("made-up-2", idempotency_key="key")

    assert (again.key, again.state) == (first.key, JobState.COMPLETED)


async def test_an_idempotency_key_with_another_body_is_refused(desk: Desk) -> None:
    await desk.submit("a", idempotency_key="key")

    answer = await desk.do(Submit(new_job("b", idempotency_key="key", fingerprint="other")))

    assert rejected(answer) == "idempotency_key_reused"
    assert await desk.tracker.get("anyone", "b") is None


@pytest.mark.parametrize("first_key", [None, "first"])
@pytest.mark.parametrize("ended", [False, True])
async def test_a_further_idempotency_key_answers_the_job_that_it_was_answered_with(
    desk: Desk, first_key: str | None, ended: bool
) -> None:
    job = await desk.submit(idempotency_key=first_key)
    assert (await desk.submit(idempotency_key="second")).key == job.key
    if ended:
        await desk.complete(await desk.claim_one())

    assert (await desk.submit(idempotency_key="second")).key == job.key
    other = (new_job("job-1"), new_job("job-2"))
    for submission in (replace(one, fingerprint="other", idempotency_key="second") for one in other):
        assert rejected(await desk.do(Submit(submission))) == "idempotency_key_reused"
    assert len(desk.rows(jobs.select())) == 1


async def test_a_job_has_a_bounded_number_of_idempotency_keys(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callback.acceptance.MAX_ALIASES", 2)
    job = await desk.submit()
    for name in ("one", "two"):
        await desk.submit(idempotency_key=name)

    assert (await desk.submit(idempotency_key="three")).key == job.key
    assert (await desk.submit(idempotency_key="two")).key == job.key
    assert len(desk.rows(idempotency_aliases.select())) == 2


async def test_idempotency_keys_of_different_owners_do_not_meet(desk: Desk) -> None:
    mine = await desk.submit("a", idempotency_key="key")
    theirs = await desk.submit("b", idempotency_key="key", owner="another", fingerprint="other")

    assert mine.key != theirs.key


async def test_a_full_queue_refuses_new_jobs_and_still_answers_for_accepted_ones(start: StartDesk) -> None:
    desk = await start(max_open_jobs=2)
    accepted, keyed = new_job("a"), new_job("b", idempotency_key="key")
    first, second = await desk.do_all(Submit(accepted), Submit(keyed))

    assert rejected(await desk.do(Submit(new_job("c")))) == "queue_full"
    assert await desk.do(Submit(accepted)) == first
    assert await desk.do(Submit(new_job("z", idempotency_key="key"))) == second
    assert await desk.do(Submit(new_job("a"))) == first


async def test_submissions_that_come_at_once_do_not_exceed_the_limit(start: StartDesk) -> None:
    desk = await start(max_open_jobs=5)

    answers = await desk.do_all(*(Submit(new_job(f"job-{n}")) for n in range(20)))

    assert sum(isinstance(answer, JobView) for answer in answers) == 5
    assert len(desk.rows(jobs.select())) == 5


async def test_a_full_queue_takes_jobs_again_when_one_has_ended(start: StartDesk) -> None:
    desk = await start(max_open_jobs=1)
    await desk.submit("a")
    await desk.fail(await desk.claim_one())

    assert (await desk.submit("b")).state is JobState.QUEUED


async def test_a_refusal_leaves_the_other_commands_of_its_batch_alone(desk: Desk) -> None:
    await desk.submit("taken")

    accepted, refused, claimed = await desk.do_all(
        Submit(new_job("free")), Submit(new_job("taken", fingerprint="other")), ClaimJobs("d", "c", "sd", 1)
    )

    assert isinstance(accepted, JobView)
    assert rejected(refused) == "job_id_in_use"
    assert isinstance(claimed, tuple)


async def test_a_command_that_meets_a_bug_leaves_the_others_of_its_batch_alone(desk: Desk) -> None:
    broken = new_job("broken", model=object())

    answer, accepted = await desk.do_all(Submit(broken), Submit(new_job("fine")))

    assert rejected(answer) == "internal_error"
    assert isinstance(accepted, JobView)
    assert desk.memory_equals_store()


async def test_a_caller_of_another_protocol_is_told_to_find_the_tracker_anew(desk: Desk) -> None:
    (answer,) = await desk.tracker.execute(99, (Submit(new_job()),))

    assert rejected(answer) == "unavailable"


async def test_a_caller_that_goes_away_leaves_its_job_and_its_neighbours_alone(desk: Desk) -> None:
    leaving = asyncio.create_task(desk.do(Submit(new_job("leaving"))))
    staying = asyncio.create_task(desk.do(Submit(new_job("staying"))))
    await asyncio.sleep(0)
    leaving.cancel()

    assert isinstance(await staying, JobView)
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await desk.submit("later")
    assert desk.memory_equals_store()


async def test_ids_that_no_database_can_hold_name_no_job(desk: Desk) -> None:
    assert await desk.tracker.get("anyone", "a\x00b") is None
    assert await desk.tracker.get("anyone", "a\udcffb") is None
    assert rejected(await desk.cancel("a\x00b")) == "job_not_found"


async def test_jobs_are_listed_newest_first_page_by_page(desk: Desk) -> None:
    for n in range(5):
        await desk.submit(f"job-{n}")
    await desk.submit("not mine", owner="another")
    await desk.renew(await desk.claim_one(), step=2)

    first = await desk.tracker.jobs("anyone", (), None, 3)
    second = await desk.tracker.jobs("anyone", (), first.next_cursor, 3)

    assert [view.job_id for view in first.views + second.views] == [f"job-{n}" for n in (4, 3, 2, 1, 0)]
    assert second.next_cursor is None
    assert second.views[-1].step == 2


async def test_jobs_are_listed_by_state(desk: Desk) -> None:
    for n in range(4):
        await desk.submit(f"job-{n}")
    await desk.complete(await desk.claim_one())
    await desk.fail(await desk.claim_one())

    async def listed(*states: JobState) -> list[str]:
        page = await desk.tracker.jobs("anyone", states, None, 10)
        return [view.job_id for view in page.views]

    assert await listed(JobState.QUEUED) == ["job-3", "job-2"]
    assert await listed(JobState.COMPLETED) == ["job-0"]
    assert await listed(JobState.COMPLETED, JobState.FAILED) == ["job-1", "job-0"]
    assert await listed(JobState.TIMEOUT) == []
