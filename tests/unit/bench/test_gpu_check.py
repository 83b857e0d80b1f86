"""`python -m bench.gpu` on the CPU, at the smallest size."""

import json
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from bench.device.batching import measure_batching
from bench.device.machine import describe_machine
from bench.device.random_models import RandomFlux, RandomSdxl
from bench.device.report import Report
from bench.device.requests import again, plain_requests
from bench.device.results import Results, write_results
from bench.device.rig import MeteredRenderer, open_rig
from bench.device.run import Part, Plan, run
from bench.device.subjects import choose_subject, settings_of
from bench.device.tables import print_results
from deployments.engine import Engine
from deployments.render import RenderRequest

ROOT = Path(__file__).parents[3]
TINY = Plan(
    sizes=(64,),
    batches=(1, 2),
    steps=2,
    requests=6,
    exact_size=64,
    images=2,
    rounds=2,
    threads=1,
    scale="tiny",
    device="cpu",
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("gpu-check")
    return run(TINY, folder / "pictures", quiet_report(folder))


def quiet_report(folder: Path) -> Report:
    return Report(Console(quiet=True), folder / "results.json")


def outcomes(results: Results, check: str) -> list[str]:
    return [verdict.outcome for verdict in results.verdicts if verdict.check == check]


def test_overlapping_requests_are_compared_with_each_alone(results: Results) -> None:
    assert [found.model for found in results.exactness] == ["embedded", "sdxl-random-tiny", "flux-random-tiny"]
    assert outcomes(results, "exact") == outcomes(results, "seeded") == ["passed"] * 3
    assert {found.requests for found in results.exactness} == {6}
    assert all(found.seeded_requests == 2 for found in results.exactness)


def test_reading_too_early_is_caught_and_the_real_engine_waits(results: Results) -> None:
    (found,) = results.synchronisation
    assert (found.means, found.wrong_unsynchronised, found.wrong_real) == ("late copy", 4, 0)
    assert outcomes(results, "synchronisation") == ["passed"]


def test_engine_and_bare_loop_do_the_same_work(results: Results) -> None:
    assert len(results.throughput) == 3
    assert outcomes(results, "same") == ["passed"] * 3
    for found in results.throughput:
        assert found.same_pictures
        assert found.engine_over_bare_png.samples == 2
        assert 0 <= found.idle_share.median < 1


def test_an_engine_that_draws_something_else_does_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = Engine.submit

    def with_another_seed(engine: Engine, request: RenderRequest, *args: Any, **kwargs: Any) -> Any:
        return submit(engine, replace(request, seed=5), *args, **kwargs)

    monkeypatch.setattr(Engine, "submit", with_another_seed)
    plan = replace(TINY, models=("embedded",), parts=(Part.THROUGHPUT,))
    results = run(plan, tmp_path / "pictures", quiet_report(tmp_path))
    assert outcomes(results, "same") == ["failed"]
    assert results.failed


def test_a_batch_that_exceeds_the_memory_ends_the_table_and_spoils_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    subject = choose_subject("sdxl", "tiny", 1, cpu)
    with settings_of(subject, cpu, tmp_path, 1) as settings:
        half = settings.model_copy(update={"dtype": "float16"})
        with open_rig(half, MeteredRenderer(half, "cpu"), tmp_path) as rig:
            vae = rig.renderer.pipeline.vae
            decode = vae.decode

            def bounded(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
                if len(latents) > 1:
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                return decode(latents, *args, **kwargs)

            monkeypatch.setattr(vae, "decode", bounded)
            results = Results("", {}, describe_machine(cpu, 1))
            measure_batching(results, rig, subject, 64, batches=(1, 2), rounds=1)
    (found,) = results.batching
    assert [row.batch for row in found.rows] == [1]
    assert outcomes(results, "batching") == ["passed"]


def test_batches_are_as_close_to_pictures_alone_as_seeded_allows(results: Results) -> None:
    for found in results.batching:
        assert [row.batch for row in found.rows] == [1, 2]
        assert found.rows[0].distance_to_alone.max_levels == 0
        assert found.rows[1].distance_to_alone.mean_levels < 2
        assert found.pays_up_to in (1, 2)


def test_each_memory_format_repeats_itself(results: Results) -> None:
    assert outcomes(results, "layout") == ["passed"] * 3
    for found in results.layout:
        assert found.repeatable
        assert found.gain.samples == 2
        assert found.distance.mean_levels < 1
    assert {found.memory_format for found in (*results.throughput, *results.batching)} == {"channels_last"}


def test_an_engine_in_another_layout_recovers_from_errors_and_goes_back(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    subject = choose_subject("embedded", None, 1, cpu)
    with (
        settings_of(subject, cpu, tmp_path, 1) as settings,
        open_rig(settings, MeteredRenderer(settings, "cpu"), tmp_path) as rig,
    ):
        (request,) = plain_requests(subject, 64, 1)
        before = rig.store.read(rig.render_alone(request).artifact)
        weight = rig.renderer.pipeline.vae.decoder.conv_in.weight
        with pytest.raises(RuntimeError, match="of the caller"), rig.renderer.laid_out(torch.contiguous_format):  # noqa: PT012
            assert weight.is_contiguous()
            rig.renderer.recover(RuntimeError("of a job"))
            rig.render_alone(again(request))
            raise RuntimeError("of the caller")
        assert weight.is_contiguous(memory_format=torch.channels_last)
        rig.renderer.recover(RuntimeError("of a job"))
        assert rig.store.read(rig.render_alone(again(request)).artifact) == before


def test_every_key_of_the_results_is_documented(results: Results, tmp_path: Path) -> None:
    write_results(results, tmp_path / "results.json")
    written = json.loads((tmp_path / "results.json").read_text())
    documented = (ROOT / "docs" / "gpu-check.md").read_text()
    assert sorted(key for key in keys(written) if f"`{key}`" not in documented) == []


def keys(value: object) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*(keys(inner) for inner in value.values()))
    return set().union(*(keys(inner) for inner in value)) if isinstance(value, list) else set()


def test_the_tables_show_every_model_and_verdict(results: Results) -> None:
    console = Console(width=200, record=True, quiet=True)
    console.quiet = False
    with console.capture() as shown:
        print_results(results, console)
    for word in ("flux-random-tiny", "synchronisation", "passed", results.machine.torch):
        assert word in shown.get()


def test_a_model_that_cannot_be_run_costs_a_verdict_and_not_the_run(tmp_path: Path) -> None:
    plan = replace(TINY, models=("flux",), parts=(Part.BATCHING, Part.EXACTNESS), batches=())
    results = run(plan, tmp_path / "pictures", quiet_report(tmp_path))
    assert [(verdict.check, verdict.outcome) for verdict in results.verdicts] == [
        ("exact", "passed"),
        ("seeded", "passed"),
        ("batching", "failed"),
    ]
    assert results.failed
    assert list((tmp_path / "pictures").iterdir()) == []


def test_a_run_that_is_cut_short_has_printed_and_kept_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.device.run.measure_batching", interrupted)
    plan = replace(TINY, models=("flux",), parts=(Part.EXACTNESS, Part.BATCHING))
    console = Console(width=200)
    with console.capture() as shown, pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path / "pictures", Report(console, tmp_path / "results.json"))
    kept = json.loads((tmp_path / "results.json").read_text())
    assert not kept["complete"]
    assert [(verdict["check"], verdict["outcome"]) for verdict in kept["verdicts"]] == [
        ("exact", "passed"),
        ("seeded", "passed"),
    ]
    assert shown.get().count("flux-random-tiny: ") == 2


def test_a_whole_run_says_that_it_is(results: Results) -> None:
    assert results.complete
    assert results.wall_s > 0


def test_a_rig_leaves_no_model_behind(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    with settings_of(choose_subject("flux", "tiny", 1, cpu), cpu, tmp_path, 1) as settings:
        with open_rig(settings, MeteredRenderer(settings, "cpu"), tmp_path) as rig:
            model = weakref.ref(rig.renderer.pipeline.transformer)
            assert model() is not None
        # `rig` is still known here, as it is to whoever opens one: two large models would not fit side by side.
        assert rig is not None
        assert model() is None


def test_random_models_have_the_published_numbers_of_weights() -> None:
    meta = torch.device("meta")
    sdxl = RandomSdxl("real", meta).load("", None, torch.float16)
    assert count(sdxl.unet) == 2_567_463_684
    flux = RandomFlux("real", meta).load("", None, torch.bfloat16)
    assert count(flux.transformer) == 11_901_408_320
    assert {parameter.dtype for parameter in flux.text_encoder_2.parameters()} == {torch.bfloat16}


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_no_ray_is_needed() -> None:
    code = "import sys, bench.gpu; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=120).returncode == 0
