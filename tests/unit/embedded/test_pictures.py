"""The drawn pictures, and the grader that looks at them."""

from collections.abc import Sequence

import pytest
import torch

from deployments.embedded import drawing
from deployments.embedded.architecture import REDUCTION
from deployments.embedded.checkpoints import randomness
from deployments.embedded.drawing import Style
from deployments.embedded.evaluate_adapter import saturation
from deployments.embedded.grader import Grade, grade, look
from deployments.embedded.scenes import Scene, Thing, sample_scene
from deployments.embedded.shapes import DISTANCE

STYLES: tuple[Style, ...] = ("monochrome", "blueprint", "painted")


def draw(scenes: Sequence[Scene], width: int, height: int, seed: int = 0, style: Style = "painted") -> torch.Tensor:
    _, generator = randomness(seed)
    return drawing.draw_picture(drawing.lay_out(scenes, width, height, generator), width, height, style)


def part_right(pictures: torch.Tensor, scenes: Sequence[Scene]) -> float:
    def answers(given: Grade) -> list[bool]:
        asked = (given.background, given.colour, given.shape, given.position)
        return [answer for answer in asked if answer is not None]

    all_answers = [answers(grade(picture, scene)) for picture, scene in zip(pictures, scenes, strict=True)]
    return sum(map(sum, all_answers)) / sum(map(len, all_answers))


@pytest.mark.parametrize("size", [(128, 128), (128, 96)])
def test_the_grader_believes_drawn_pictures_and_not_shuffled_captions(size: tuple[int, int]) -> None:
    random, _ = randomness(11)
    scenes = [sample_scene(random) for _ in range(60)]
    pictures = draw(scenes, *size)
    assert part_right(pictures, scenes) >= 0.99
    assert part_right(pictures, scenes[1:] + scenes[:1]) < 0.3


def test_no_pixel_is_dark() -> None:
    random, _ = randomness(3)
    pictures = draw([sample_scene(random) for _ in range(30)], 64, 64)
    assert float(pictures.amax(1).min()) * 255 > 10


@pytest.mark.parametrize("size", [(96, 64), (32, 128)])
def test_every_pixel_of_a_long_picture_is_a_colour(size: tuple[int, int]) -> None:
    random, _ = randomness(6)
    pictures = draw([sample_scene(random) for _ in range(40)], *size)
    assert bool(torch.isfinite(pictures).all())
    assert float(pictures.max()) <= 1.0


def test_same_seed_same_picture_and_other_seed_another() -> None:
    scene = [Scene("blue", (Thing("heart", "red"),))]
    first, again, other = (draw(scene, 64, 48, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_window_shows_what_the_whole_picture_shows_there() -> None:
    random, generator = randomness(4)
    layout = drawing.lay_out([sample_scene(random) for _ in range(3)], 128, 96, generator)
    whole = drawing.draw_picture(layout, 128, 96)
    part = drawing.draw_window(layout, 128, 96, (40, 16), (32, 48))
    assert torch.allclose(part, whole[:, :, 16:64, 40:72], atol=1e-5)


def test_shapes_stay_inside_the_unit_circle() -> None:
    line = torch.linspace(-1.3, 1.3, 201)
    x, y = line[None, :].expand(201, 201), line[:, None].expand(201, 201)
    for name, distance in DISTANCE.items():
        outside = distance(x, y)[x * x + y * y > 1.12**2]
        assert float(outside.min()) > 0.0, name


def test_monochrome_is_grey_and_blueprint_is_blue() -> None:
    random, _ = randomness(5)
    scenes = [sample_scene(random) for _ in range(4)]
    grey = draw(scenes, 64, 64, style="monochrome")
    assert float((grey.amax(1) - grey.amin(1)).max()) == 0.0
    assert all(look(picture).background == "blue" for picture in draw(scenes, 64, 64, style="blueprint"))


def test_the_adapters_looks_are_measured_on_what_they_should_draw() -> None:
    random, _ = randomness(5)
    scenes = [sample_scene(random) for _ in range(20)]
    grey, blue, painted = (draw(scenes, 128, 128, style=style) for style in STYLES)
    assert max(saturation(picture) for picture in grey) < 0.01
    assert min(saturation(picture) for picture in painted) > 0.08
    assert all(look(picture).background == "blue" for picture in blue)


def test_a_caption_fixes_where_a_things_outline_runs_to_a_fraction_of_a_latent() -> None:
    """A denoiser that may choose the place settles each part of an outline for itself, and circles get dents."""
    scene = [Scene("blue", (Thing("circle", "red"),), position="left")] * 200
    _, generator = randomness(5)
    layout = drawing.lay_out(scene, 1024, 1024, generator)
    latent = REDUCTION / 1024
    for edge in (layout.centre[:, 0, 0] + layout.radius[:, 0], layout.centre[:, 0, 1] - layout.radius[:, 0]):
        assert 0.0 < float(edge.max() - edge.min()) < 0.7 * latent
