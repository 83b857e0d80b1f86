import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stress.errors import UnreadablePictureError
from stress.picture_comparison import (
    ROUNDING,
    Distance,
    Fingerprint,
    MatchKind,
    distance,
    fingerprint,
    identify,
)
from stress.pixels import Pixels

SIDE = 128


def scene(seed: int, side: int = SIDE) -> Pixels:
    """Soft blotches of colour with grain: every seed another picture, no two rows alike."""
    random = np.random.default_rng(seed)
    blotches = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((side, side))
    grain = random.integers(-2, 3, (side, side, 3))
    return np.asarray(np.clip(np.asarray(blotches, np.int16) + grain, 0, 255), np.uint8)


def encode(pixels: Pixels, compress_level: int = 1) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=compress_level)
    return buffer.getvalue()


def with_rounding(pixels: Pixels) -> Pixels:
    steps = np.random.default_rng(1).integers(-1, 2, pixels.shape)
    return np.asarray(np.clip(pixels.astype(np.int16) + steps, 0, 255), np.uint8)


def prints(*seeds: int) -> dict[str, Fingerprint]:
    return {f"job-{seed}": fingerprint(encode(scene(seed))) for seed in seeds}


def test_the_distance_is_the_mean_and_the_largest_difference() -> None:
    one = np.zeros((10, 10, 3), np.uint8)
    other = one.copy()
    other[0, 0] = (30, 0, 255)

    assert distance(one, other) == distance(other, one) == Distance(mean=285 / 300, max=255)
    with pytest.raises(ValueError, match=r"10x10 and 10x9 pixels"):
        distance(one, one[:9])


def test_equal_pixels_are_identical_whatever_the_encoding() -> None:
    match = identify(encode(scene(1), 9), "job-1", prints(1, 2))

    assert match.kind is MatchKind.IDENTICAL
    assert match.is_good


def test_anothers_picture_is_swapped() -> None:
    match = identify(encode(scene(2)), "job-1", prints(1, 2, 3))

    assert (match.kind, match.other) == (MatchKind.SWAPPED, "job-2")
    assert match.sentence == "The picture is exactly that of another job, job-2."
    assert not match.is_good


def test_anothers_picture_with_other_rounding_is_swapped() -> None:
    match = identify(encode(with_rounding(scene(2))), "job-1", prints(1, 2, 3))

    assert (match.kind, match.other) == (MatchKind.SWAPPED, "job-2")
    assert match.other_distance is not None
    assert match.own_distance is not None
    assert match.other_distance < ROUNDING < match.own_distance


def test_two_jobs_that_asked_for_the_same_picture_are_not_swapped() -> None:
    same = fingerprint(encode(with_rounding(scene(1))))
    references = {**prints(1, 2), "again": same}

    assert identify(encode(scene(1)), "again", references, tolerance=ROUNDING).is_good is False
    assert identify(encode(scene(1)), "job-1", references).kind is MatchKind.IDENTICAL
    drawn_again = encode(np.minimum(with_rounding(scene(1)), 254))
    assert identify(drawn_again, "job-1", references, tolerance=ROUNDING).is_good


def test_an_earlier_picture_of_the_same_id_is_stale() -> None:
    match = identify(encode(scene(9)), "job-1", prints(1, 2), earlier={"job-1": fingerprint(encode(scene(9)))})

    assert (match.kind, match.other) == (MatchKind.STALE, "job-1")
    assert match.sentence == "The picture is exactly an earlier one of the same id."


def test_an_earlier_jobs_picture_is_stale_even_if_it_is_a_reference_too() -> None:
    references = prints(1, 2)

    match = identify(encode(scene(2)), "job-1", references, earlier={"job-2": references["job-2"]})

    assert (match.kind, match.other) == (MatchKind.STALE, "job-2")


def test_rounding_is_near_for_the_seeded_class_and_wrong_for_the_exact_one(tmp_path: Path) -> None:
    path = tmp_path / "reference.png"
    path.write_bytes(encode(scene(1)))
    references = {**prints(2), "job-1": fingerprint(path)}
    picture = encode(with_rounding(scene(1)))

    near, wrong = (identify(picture, "job-1", references, tolerance=tolerance) for tolerance in (ROUNDING, 0.0))

    assert near.kind is MatchKind.NEAR
    assert near.is_good
    assert near.own_distance == pytest.approx(2 / 3, abs=0.02)
    assert "1 at most (limit 2)" in near.sentence
    assert wrong.kind is MatchKind.WRONG


def test_noise_that_thumbnails_average_away_is_seen_where_the_reference_has_a_file(tmp_path: Path) -> None:
    path = tmp_path / "reference.png"
    path.write_bytes(encode(scene(1)))
    grain = np.random.default_rng(2).integers(-30, 31, (SIDE, SIDE, 3))
    picture = encode(np.clip(scene(1) + grain, 0, 255).astype(np.uint8))

    match = identify(picture, "job-1", {"job-1": fingerprint(path)}, tolerance=ROUNDING)

    assert match.kind is MatchKind.WRONG


@pytest.mark.parametrize("first", [4, 64, 120])
def test_copied_rows_are_contamination_and_are_named(first: int) -> None:
    pixels = scene(1)
    pixels[first : first + 6] = scene(2)[first : first + 6]

    match = identify(encode(pixels), "job-1", prints(1, 2, 3), tolerance=ROUNDING)

    assert (match.kind, match.other, match.rows) == (MatchKind.CONTAMINATED, "job-2", (first, first + 5))
    assert f"6 rows (4.7% of the height), from {first} to {first + 5}" in match.sentence


def test_copied_rows_with_other_rounding_are_contamination() -> None:
    pixels = scene(1)
    pixels[96:] = scene(2)[96:]
    references = prints(1, 3)

    match = identify(
        encode(with_rounding(pixels)),
        "job-1",
        references,
        earlier={"old": fingerprint(encode(scene(2)))},
        tolerance=ROUNDING,
    )

    assert (match.kind, match.other) == (MatchKind.CONTAMINATED, "old")
    assert match.rows is not None
    # Bands that happen to look alike in both pictures are not claimed.
    assert 96 <= match.rows[0] < match.rows[1] <= SIDE - 1
    assert match.sentence.endswith("those of the earlier picture old.")


def test_exchanged_channels_are_told_from_a_wrong_picture() -> None:
    match = identify(encode(np.ascontiguousarray(scene(1)[:, :, ::-1])), "job-1", prints(1, 2))

    assert match.kind is MatchKind.CHANNELS_SWAPPED


def test_a_picture_that_is_nobodys_is_wrong() -> None:
    match = identify(encode(scene(7)), "job-1", prints(1, 2, 3), tolerance=ROUNDING)

    assert match.kind is MatchKind.WRONG
    assert "in 128 of 128 rows, from 0 to 127" in match.sentence


def test_another_size_is_wrong() -> None:
    match = identify(encode(scene(1, 64)), "job-1", prints(1))

    assert match.kind is MatchKind.WRONG
    assert "64x64, its reference 128x128" in match.sentence


def test_a_job_without_reference_is_unknown_unless_it_got_anothers() -> None:
    assert identify(encode(scene(7)), "new", prints(1, 2)).kind is MatchKind.UNKNOWN
    assert identify(encode(scene(2)), "new", prints(1, 2)).kind is MatchKind.SWAPPED


def test_a_grey_picture_that_equals_its_reference_on_thumbnails_has_no_exchanged_channels() -> None:
    grey = np.repeat(scene(1)[:, :, :1], 3, axis=2)
    changed = grey.copy()
    changed[5, 5] ^= 1

    assert identify(encode(changed), "job", {"job": fingerprint(encode(grey))}).kind is MatchKind.WRONG


def test_what_cannot_be_decoded_is_an_error_with_a_name(tmp_path: Path) -> None:
    path = tmp_path / "text.png"
    path.write_text("no picture")

    with pytest.raises(UnreadablePictureError, match=r"text\.png"):
        fingerprint(path)
    with pytest.raises(UnreadablePictureError, match="the picture"):
        identify(b"no picture", "job", {})


def test_fifty_pictures_against_fifty_references_take_seconds_and_little_memory() -> None:
    references = {str(seed): fingerprint(encode(scene(seed, 1024))) for seed in range(3)}
    names = {f"job {number}": references[str(number % 3)] for number in range(50)}
    picture = encode(scene(99, 1024))
    began = time.process_time()

    kinds = {identify(picture, "job 0", names).kind for _ in range(5)}

    # A tenth of the fifty; 2 s for all on an idle machine, five times that on a slow one.
    assert time.process_time() - began < 1.0
    assert kinds == {MatchKind.WRONG}
    kept = references["0"]
    assert kept.rows.nbytes + kept.thumbnail.nbytes < 25_000
