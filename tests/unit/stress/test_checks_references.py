from pathlib import Path

from faulty_service import FaultyService, Flaw
from kit_sessions import session_with

from stress.checks.jobs import Watch
from stress.checks.outcome import Fault
from stress.checks.references import References, key_of
from stress.wire import InferenceRequest


async def test_each_distinct_request_is_drawn_once_and_alone(tmp_path: Path) -> None:
    service = FaultyService(workers=4)
    async with session_with(service, tmp_path) as session:
        watch = Watch(session, "one")
        references = References()
        requests = [watch.request(seed=seed) for seed in (1, 2, 1)]
        drawn = await references.prepare(watch, requests)
        again = await references.prepare(Watch(session, "two"), requests)

    assert [run.findings for run in drawn] == [[], []]
    assert again == []
    assert service.submissions == 2
    ends = [(run.trace.submitted_s, run.trace.final_s) for run in drawn if run.trace]
    assert ends[0][1] is not None
    assert ends[0][1] <= ends[1][0]
    own = references.get(requests[2])
    assert own is not None
    assert own.determinism == "exact"
    assert own.path.read_bytes()


async def test_base_models_are_drawn_before_adapters(tmp_path: Path) -> None:
    async with session_with(FaultyService(), tmp_path) as session:
        watch = Watch(session, "order")
        wanted = [watch.request(seed=1, lora_path="adapters/ink"), watch.request(seed=1)]
        drawn = await References().prepare(watch, wanted)

    assert [run.request.lora_path for run in drawn] == [None, "adapters/ink"]


async def test_the_work_that_references_cost_is_told(tmp_path: Path) -> None:
    async with session_with(FaultyService(), tmp_path) as session:
        watch = Watch(session, "told")
        await References().prepare(watch, [watch.request(seed=1), watch.request(seed=2)])
        assert "Drawing 2 reference picture(s)" in session.progress.lines[0]  # type: ignore[attr-defined]
        assert "--no-reference" in session.progress.lines[0]  # type: ignore[attr-defined]


async def test_a_folder_keeps_references_for_the_next_call(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    first, second = FaultyService(), FaultyService()
    async with session_with(first, tmp_path / "one") as session:
        watch = Watch(session, "one")
        await References(folder, service="here").prepare(watch, [watch.request(seed=1)])
    async with session_with(second, tmp_path / "two") as session:
        watch = Watch(session, "two")
        kept = References(folder, service="here")
        request = watch.request(seed=1)
        assert await kept.prepare(watch, [request]) == []
        assert kept.get(request) is not None
        assert len(await References(folder, service="there").prepare(watch, [request])) == 1

    assert second.submissions == 1


async def test_a_kept_file_that_was_changed_is_drawn_again(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    service = FaultyService()
    async with session_with(service, tmp_path) as session:
        watch = Watch(session, "changed")
        request = watch.request(seed=1)
        await References(folder).prepare(watch, [request])
        (picture,) = folder.glob("*.png")
        picture.write_bytes(picture.read_bytes()[:-1])
        assert len(await References(folder).prepare(watch, [request])) == 1


async def test_a_reference_that_repeats_an_earlier_one_is_found_and_not_used(tmp_path: Path) -> None:
    async with session_with(FaultyService(Flaw.STALE_PICTURE), tmp_path) as session:
        watch = Watch(session, "stale")
        references = References()
        requests = [watch.request(seed=1), watch.request(seed=2)]
        drawn = await references.prepare(watch, requests)

    assert [finding.fault for finding in drawn[1].findings] == [Fault.STALE_PICTURE]
    assert drawn[0].job_id in drawn[1].findings[0].sentence
    assert references.get(requests[1]) is None


async def test_a_broken_picture_is_no_reference(tmp_path: Path) -> None:
    async with session_with(FaultyService(Flaw.GREY_TAIL), tmp_path) as session:
        watch = Watch(session, "broken")
        references = References()
        request = watch.request(seed=1)
        (run,) = await references.prepare(watch, [request])

    assert run.findings
    assert run.received is None
    assert references.get(request) is None


def test_where_a_request_goes_does_not_decide_about_its_picture() -> None:
    plain = InferenceRequest(prompt="a cat", seed=1)
    addressed = InferenceRequest(prompt="a cat", seed=1, job_id="x", callback_url="http://there", lora_path="")
    assert key_of(plain) == key_of(addressed)
    assert key_of(plain) != key_of(InferenceRequest(prompt="a cat", seed=2))
