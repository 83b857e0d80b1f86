import io
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from deployments.embedded.drawing import Style, draw_picture, lay_out
from deployments.embedded.scenes import sample_scene
from stress.picture_faults import LOSSY_ROWS, PictureFaultKind, find_faults
from stress.pixels import Pixels, decode_bytes

SIDE = 256
KIND = PictureFaultKind
Damage = Callable[[Pixels, int], None]


def drawn(count: int, seed: int, sizes: tuple[tuple[int, int], ...] = ((SIDE, SIDE),)) -> Iterator[Pixels]:
    """Pictures in the three looks of the embedded model, to be changed at will."""
    return (pixels.copy() for pixels in _drawn(count, seed, sizes))


@cache
def _drawn(count: int, seed: int, sizes: tuple[tuple[int, int], ...]) -> tuple[Pixels, ...]:
    random, generator = Random(seed), torch.Generator().manual_seed(seed)  # noqa: S311 - scenes are drawn from it
    styles: tuple[Style, ...] = ("painted", "monochrome", "blueprint")
    pictures = []
    for number in range(count):
        width, height = sizes[number % len(sizes)]
        layout = lay_out([sample_scene(random)], width, height, generator)
        picture = draw_picture(layout, width, height, styles[number // len(sizes) % 3])[0]
        pictures.append((picture * 255).round().byte().permute(1, 2, 0).contiguous().numpy())
    return tuple(pictures)


def one_colour(red: int, green: int, blue: int) -> Damage:
    def fill(pixels: Pixels, row: int) -> None:
        pixels[row:] = (red, green, blue)

    return fill


def nearly_grey(pixels: Pixels, row: int) -> None:
    pixels[row:] = np.random.default_rng(row).integers(127, 130, pixels[row:].shape)


def random_bytes(pixels: Pixels, row: int) -> None:
    pixels[row:] = np.random.default_rng(row).integers(0, 256, pixels[row:].shape)


def row_again(pixels: Pixels, row: int) -> None:
    pixels[row:] = pixels[row - 1]


def block_again(pixels: Pixels, row: int) -> None:
    for at in range(row, len(pixels)):
        pixels[at] = pixels[at - min(row, 32)]


TAILS = [
    pytest.param(one_colour(0, 0, 0), KIND.BLACK_TAIL, id="black"),
    pytest.param(one_colour(128, 128, 128), KIND.GREY_TAIL, id="grey"),
    pytest.param(one_colour(255, 255, 255), KIND.WHITE_TAIL, id="white"),
    pytest.param(one_colour(20, 200, 90), KIND.FLAT_TAIL, id="flat"),
    pytest.param(nearly_grey, KIND.GREY_TAIL, id="nearly grey"),
    pytest.param(random_bytes, KIND.NOISE_TAIL, id="noise"),
    pytest.param(row_again, KIND.REPEATED_ROWS, id="one row again"),
    pytest.param(block_again, KIND.REPEATED_ROWS, id="a block again"),
]


@pytest.mark.parametrize(("damage", "kind"), TAILS)
def test_a_tail_of_any_height_is_found_and_measured(damage: Damage, kind: PictureFaultKind) -> None:
    random = np.random.default_rng(len(kind))
    for pixels in drawn(9, seed=4):
        height = len(pixels)
        row = height - round(height * random.uniform(0.03, 0.7))
        damage(pixels, row)

        (fault,) = find_faults(pixels)

        assert fault.kind is kind
        assert fault.is_partial
        assert fault.first == row
        assert fault.last == height - 1
        assert f"{(height - row) / height * 100:.1f}%" in fault.sentence


def test_the_embedded_models_looks_raise_no_alarm() -> None:
    sizes = ((SIDE, SIDE), (384, SIDE), (192, 320))

    for pixels in drawn(18, 9, sizes):
        assert find_faults(pixels) == ()
        assert find_faults(pixels, lossy=True) == ()


@pytest.mark.parametrize("level", [0, 128])
def test_a_tail_that_a_lossy_encoder_has_blurred_is_found(level: int) -> None:
    for pixels in drawn(9, seed=4):
        pixels[180:] = level
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "JPEG", quality=85)

        (fault,) = find_faults(decode_bytes(encoded.getvalue()), lossy=True)

        assert fault.first is not None
        assert 180 <= fault.first <= 180 + LOSSY_ROWS


def freeze_right(pixels: Pixels) -> None:
    pixels[:, SIDE // 2 :] = pixels[:, : SIDE // 2]


def freeze_left(pixels: Pixels) -> None:
    pixels[:, : SIDE // 2] = pixels[:, SIDE // 2 :]


def freeze_bottom(pixels: Pixels) -> None:
    pixels[SIDE // 2 :] = pixels[: SIDE // 2]


def smear_right(pixels: Pixels) -> None:
    pixels[:, SIDE // 2 :] = pixels[:, SIDE // 2 - 1 : SIDE // 2]


@pytest.mark.parametrize(
    ("freeze", "half"),
    [(freeze_right, "right"), (freeze_left, "right"), (freeze_bottom, "bottom"), (smear_right, "right")],
)
def test_a_frozen_half_is_found(freeze: Callable[[Pixels], None], half: str) -> None:
    for pixels in drawn(9, seed=4):
        freeze(pixels)

        (fault,) = find_faults(pixels)

        assert fault.kind is KIND.FROZEN_HALF
        assert f"the {half} half" in fault.sentence
        assert (fault.first, fault.last) == (SIDE // 2, SIDE - 1)


def test_repeated_columns_and_a_block_in_the_middle_are_found() -> None:
    columns, middle = islice(drawn(9, seed=4), 2)
    columns[:, 200:240] = columns[:, 199:200]
    middle[100:130] = middle[40:70]

    (in_columns,), (in_middle,) = find_faults(columns), find_faults(middle)

    assert (in_columns.kind, in_columns.first, in_columns.last) == (KIND.REPEATED_COLUMNS, 200, 239)
    assert in_middle.sentence == (
        "Repeated rows: rows 100 to 129, 11.7% of the height, are a copy of rows 40 to 69 (limit 2%)"
    )


def grid() -> tuple[Pixels, Pixels]:
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    return y, x


def grey(values: np.ndarray[tuple[int, ...], np.dtype[np.floating]]) -> Pixels:
    return np.repeat(np.clip(np.rint(values), 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def night() -> Pixels:
    random = np.random.default_rng(3)
    sky = np.clip(random.normal(4, 2, (SIDE, SIDE)), 0, 255)
    sky[random.integers(0, SIDE, 200), random.integers(0, SIDE, 200)] = 220
    return grey(sky)


def black_night() -> Pixels:
    random = np.random.default_rng(3)
    sky = np.zeros((SIDE, SIDE))
    sky[random.integers(0, SIDE, 200), random.integers(0, SIDE - 20, 200)] = 220
    return grey(sky)


def snow() -> Pixels:
    y, x = grid()
    random = np.random.default_rng(3)
    return grey(np.where(y < SIDE / 2, 140 + 20 * np.sin(x / 30 + y / 50), 248 + random.normal(0, 1.2, (SIDE, SIDE))))


def product_on_white(ground: int = 255) -> Pixels:
    y, x = grid()
    random = np.random.default_rng(3)
    thing = (x - SIDE / 2.0) ** 2 + (y - SIDE * 0.4) ** 2 < (SIDE * 0.3) ** 2
    return grey(np.where(thing, random.uniform(0, 200, (SIDE, SIDE)), ground))


def letterboxed() -> Pixels:
    y, x = grid()
    scene = 128 + 60 * np.sin(x / 20) + 40 * np.cos(y / 13)
    return grey(np.where((y < 32) | (y >= SIDE - 32), 0.0, scene))


def sky_over_gravel() -> Pixels:
    random = np.random.default_rng(3)
    gravel = random.normal(0, 70, (SIDE + 1, SIDE + 1))
    # A decoder's or lens's blur over two pixels leaves a correlation of a half.
    gravel = 110 + (gravel[1:, 1:] + gravel[:-1, 1:] + gravel[1:, :-1] + gravel[:-1, :-1]) / 4
    y, x = grid()
    return grey(np.where(y < SIDE / 2, 150 + 20 * np.sin(x / 30 + y / 17), gravel))


def wallpaper() -> Pixels:
    return np.tile(np.random.default_rng(3).integers(0, 256, (SIDE // 4, SIDE // 4, 3), dtype=np.uint8), (4, 4, 1))


def enlarged() -> Pixels:
    small = np.random.default_rng(3).integers(0, 256, (SIDE // 16, SIDE // 16, 3), dtype=np.uint8)
    return small.repeat(16, axis=0).repeat(16, axis=1)


HONEST = {
    "white noise": lambda: np.random.default_rng(3).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8),
    "downward gradient": lambda: grey(grid()[0] * 1.0),
    "slow downward gradient": lambda: grey(120 + grid()[0] * 0.2),
    "fade to black": lambda: grey(255 * (1 - grid()[0] / 255.0) ** 2),
    "fade to white": lambda: grey(grid()[0] * 1.2),
    "gradient across": lambda: grey(grid()[1] * 1.0),
    "horizontal stripes": lambda: grey(grid()[0] // 16 % 2 * 200.0 + 20),
    "broad stripes": lambda: grey(grid()[0] // 64 % 2 * 200.0 + 20),
    "upright stripes": lambda: grey(grid()[1] // 8 % 2 * 200.0 + 20),
    "slanted stripes": lambda: grey((grid()[0] + grid()[1]) // 16 % 2 * 200.0 + 20),
    "board": lambda: grey((grid()[0] // 8 + grid()[1] // 8) % 2 * 200.0 + 20),
    "night": night,
    "black night": black_night,
    "snow": snow,
    "product on white": product_on_white,
    "thing on black": lambda: product_on_white(0),
    "letterboxed film": letterboxed,
    "sky over gravel": sky_over_gravel,
    "wallpaper": wallpaper,
    "enlarged": enlarged,
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_picture_raises_no_alarm(name: str) -> None:
    assert find_faults(HONEST[name]()) == ()
    assert find_faults(HONEST[name](), lossy=True) == ()


def test_a_white_tail_below_a_white_ground_cannot_be_told_from_it() -> None:
    pixels = product_on_white()
    pixels[200:] = 255

    assert find_faults(pixels) == ()


def test_a_tail_below_the_limit_is_let_pass() -> None:
    pixels = next(drawn(9, seed=4))
    pixels[-5:] = 128
    assert find_faults(pixels) == ()

    pixels[-6:] = 128
    (fault,) = find_faults(pixels)
    assert "(6 of 256)" in fault.sentence


def test_pixels_that_are_flat_throughout_have_no_tail() -> None:
    assert find_faults(np.full((SIDE, SIDE, 3), 128, np.uint8)) == ()


@pytest.mark.parametrize("shape", [(0, 0, 3), (1, 1, 3), (1, 64, 3), (64, 1, 3), (3, 3, 3)])
def test_tiny_pictures_are_looked_at_without_error(shape: tuple[int, int, int]) -> None:
    assert find_faults(np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)) == ()
