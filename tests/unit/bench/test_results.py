"""results.json, and what is drawn and printed from it."""

import io
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from bench import results, tables
from bench.errors import BenchError
from bench.plot import Bar, Panel, draw, svg
from bench.records import Record, Results, Scale, ScaleFigures, Start, StartFigures
from bench.statistics import estimate

RUN = ScaleFigures(
    devices=4,
    autoscaled=False,
    devices_at_the_end=4,
    jobs=40,
    render_s=2.0,
    jobs_per_s=1.9,
    share_of_ideal=0.95,
    idle_share=0.03,
    tracker_cpu_ms_per_job=4.0,
    tracker_cores=0.01,
    cpu_ms_per_job={"TrackerActor": 4.0},
)
MOMENT = estimate([1.0, 2.0, 3.0])
START = StartFigures(
    engine="noop",
    mode="default",
    http_answers_s=MOMENT,
    jobs_accepted_s=MOMENT,
    model_loaded_s=MOMENT,
    rendering_began_s=MOMENT,
    first_picture_s=MOMENT,
)


def saved(file: Path, **sections: Record) -> Results:
    for name, record in sections.items():
        results.save(file, results.load(file), name, record, results.conditions("tiny", file.parent))
    return results.load(file)


def test_a_section_that_is_measured_again_leaves_the_others(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    saved(file, scale=Scale(runs=(RUN,)), start=Start(pictures=(START,)))

    found = saved(file, scale=Scale(runs=()))

    assert found.scale == Scale(runs=())
    assert found.start == Start(pictures=(START,))
    assert set(found.conditions) == {"scale", "start"}
    assert all((conditions.python_ms or 0) > 0 for conditions in found.conditions.values())


def test_a_file_of_another_form_is_refused_with_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text('{"unknown": 1}')

    with pytest.raises(BenchError, match="not of this version's form"):
        results.load(file)


def test_the_plot_is_well_formed_and_names_every_bar(tmp_path: Path) -> None:
    file = tmp_path / "results.svg"
    draw(saved(tmp_path / "results.json", scale=Scale(runs=(RUN,)), start=Start(pictures=(START,))), file)

    texts = [element.text for element in ElementTree.parse(file).iter() if element.tag.endswith("text")]  # noqa: S314
    assert {"4 devices", "noop, default proxy", "Throughput, share of ideal"} <= set(texts)


def test_a_value_below_zero_has_no_bar_of_negative_width() -> None:
    drawn = svg([Panel("<idle>", (Bar("a & b", -0.01, -0.01, -0.01),))])

    assert 'width="0.0"' in drawn
    assert "&lt;idle&gt;" in drawn


def test_the_tables_show_every_section(tmp_path: Path) -> None:
    out = io.StringIO()
    found = saved(tmp_path / "results.json", scale=Scale(runs=(RUN,)), start=Start(pictures=(START,)))
    tables.print_results(found, Console(file=out, width=150))

    assert "0.950" in out.getvalue()
    assert "2 (1-3)" in out.getvalue()
