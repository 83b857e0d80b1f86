import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stress import image_validator
from stress.image_validator import ImageValidator
from stress.picture_faults import PictureFaultKind
from stress.pixels import Pixels

SIZE = 64


def small_validator(*, require_png: bool = False) -> ImageValidator:
    return ImageValidator(SIZE, SIZE, min_file_size=1, require_png=require_png)


def noise(height: int = SIZE, width: int = SIZE) -> Pixels:
    return np.random.default_rng(7).integers(10, 256, (height, width, 3), dtype=np.uint8)


def encode(pixels: Pixels, image_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format)
    return buffer.getvalue()


def test_noise_of_the_expected_size_is_valid_and_measured() -> None:
    pixels = noise()
    data = encode(pixels)

    result = small_validator().validate_bytes(data)

    assert result.is_valid
    assert result.reason is None
    assert result.file_size == len(data)
    assert result.dimensions == (SIZE, SIZE)
    assert result.blank_percentage == 0.0
    assert result.variance == pytest.approx(pixels.astype(float).var())


def test_default_limits_accept_a_photo_like_picture_of_1024_pixels(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(encode(noise(1024, 1024)))

    result = ImageValidator().validate(path)

    assert result.is_valid
    assert result.dimensions == (1024, 1024)


def test_a_result_cannot_be_changed() -> None:
    result = small_validator().validate_bytes(encode(noise()))

    with pytest.raises(dataclasses.FrozenInstanceError):
        result.is_valid = False  # type: ignore[misc]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.png"

    result = ImageValidator().validate(path)

    assert result == image_validator.ValidationResult(False, f"File does not exist: {path}")


def test_too_few_bytes_are_refused_before_anything_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "small.png"
    path.write_bytes(b"x" * 99_999)

    result = ImageValidator().validate(path)

    assert result.reason == "File too small (99999 bytes, expected >100000)"
    assert result.file_size == 99_999
    assert result.dimensions is None


def test_too_many_bytes_are_refused_before_anything_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(b"x" * 101)
    validator = ImageValidator(min_file_size=1, max_file_size=100)

    assert validator.validate(path).reason == "File too large (101 bytes, expected <100)"
    assert validator.validate_bytes(b"x" * 101).reason == "File too large (101 bytes, expected <100)"


@pytest.mark.parametrize("size", [100, 200])
def test_the_size_limits_themselves_are_allowed(size: int) -> None:
    reason = ImageValidator(min_file_size=100, max_file_size=200).validate_bytes(b"x" * size).reason

    assert reason is not None
    assert reason.startswith("PIL verification failed: ")


def test_a_cut_off_png_fails_verification() -> None:
    data = encode(noise())

    result = small_validator().validate_bytes(data[: len(data) // 2])

    assert result.reason is not None
    assert result.reason.startswith("PIL verification failed: ")


def test_a_picture_that_verifies_but_does_not_decode_is_an_analysis_failure() -> None:
    data = encode(noise(), "JPEG")

    result = small_validator().validate_bytes(data[: len(data) // 2])

    assert result.reason is not None
    assert result.reason.startswith("Image analysis failed: ")


def test_an_unreadable_path_is_an_analysis_failure(tmp_path: Path) -> None:
    result = ImageValidator(min_file_size=0).validate(tmp_path)

    assert result.reason is not None
    assert result.reason.startswith("Image analysis failed: ")


def test_another_size_is_a_dimension_mismatch() -> None:
    result = small_validator().validate_bytes(encode(noise(32, 48)))

    assert result.reason == "Dimension mismatch: expected 64x64, got 48x32"
    assert result.dimensions == (48, 32)
    assert result.variance is None


def test_a_huge_picture_is_refused_without_being_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stress.pixels.MAX_DECODED_PIXELS", SIZE * SIZE)
    broken_tail = encode(noise(128, 128), "JPEG")[:-2000]

    result = small_validator().validate_bytes(broken_tail)

    assert result.reason == "Dimension mismatch: expected 64x64, got 128x128"
    assert ImageValidator().detect_partial_render_bytes(broken_tail) == (
        False,
        "Could not analyze: 128x128 is too large to decode",
    )


def test_more_dark_pixels_than_the_limit_are_blank() -> None:
    pixels = noise()
    pixels[:33] = 9

    result = small_validator().validate_bytes(encode(pixels))

    assert result.reason == "Image has 51.6% blank/black pixels (threshold: 50.0%)"
    assert result.blank_percentage == 33 / 64
    assert not result.is_valid


def test_dark_pixels_up_to_the_limit_are_not_blank() -> None:
    pixels = noise()
    pixels[:32] = 0

    assert small_validator().validate_bytes(encode(pixels)).is_valid


def test_a_pixel_with_one_bright_channel_is_not_dark() -> None:
    pixels = noise()
    pixels[:40] = (0, 0, 10)

    assert small_validator().validate_bytes(encode(pixels)).blank_percentage == 0.0


def test_a_flat_picture_has_too_little_variance() -> None:
    result = small_validator().validate_bytes(encode(np.full((SIZE, SIZE, 3), 128, np.uint8)))

    assert result.reason == "Image variance too low (0.0, threshold: 100.0), may be solid color or corrupted"


def test_blank_is_reported_before_low_variance() -> None:
    result = small_validator().validate_bytes(encode(np.zeros((SIZE, SIZE, 3), np.uint8)))

    assert result.reason is not None
    assert result.reason.startswith("Image has 100.0% blank/black pixels")


def test_alpha_is_ignored() -> None:
    transparent = np.dstack([noise(), np.zeros((SIZE, SIZE), np.uint8)])

    assert small_validator().validate_bytes(encode(transparent)).is_valid


def test_other_formats_pass_unless_png_is_required() -> None:
    data = encode(noise(), "JPEG")

    assert small_validator().validate_bytes(data).is_valid
    strict = small_validator(require_png=True)
    assert strict.validate_bytes(data).reason == "Format mismatch: expected PNG, got JPEG"
    assert strict.validate_bytes(encode(noise())).is_valid


def test_a_black_bottom_is_a_partial_render(tmp_path: Path) -> None:
    pixels = noise(100, 100)
    pixels[75:] = 0
    path = tmp_path / "partial.png"
    path.write_bytes(encode(pixels))

    found = ImageValidator().detect_partial_render(path)

    assert found == (True, "Partial render detected: 83.3% of bottom rows are blank")


def test_a_bottom_that_is_dark_up_to_the_limit_is_whole() -> None:
    pixels = noise(100, 100)
    pixels[76:] = 0

    assert ImageValidator().detect_partial_render_bytes(encode(pixels)) == (False, None)


def test_one_bright_value_makes_a_row_not_dark() -> None:
    pixels = noise(100, 100)
    pixels[50:] = 0
    pixels[50:, 0, 2] = 10

    assert ImageValidator().detect_partial_render_bytes(encode(pixels)) == (False, None)


@pytest.mark.parametrize(("threshold", "is_partial"), [(0.0, False), (0.1, True), (1.0, False), (2.0, False)])
def test_the_threshold_chooses_the_rows_that_are_looked_at(threshold: float, is_partial: bool) -> None:
    pixels = noise(100, 100)
    pixels[90:] = 0

    assert ImageValidator().detect_partial_render_bytes(encode(pixels), threshold)[0] is is_partial


def test_an_unreadable_file_is_not_called_partial(tmp_path: Path) -> None:
    path = tmp_path / "text.png"
    path.write_text("no picture")

    is_partial, reason = ImageValidator().detect_partial_render(path)

    assert not is_partial
    assert reason is not None
    assert reason.startswith("Could not analyze: ")


def smooth() -> Pixels:
    blotches = Image.fromarray(noise(6, 6)).resize((SIZE, SIZE))
    return np.array(blotches, dtype=np.uint8)


def deep_validator(side: int = SIZE) -> ImageValidator:
    return ImageValidator(side, side, min_file_size=1, deep=True)


def test_a_grey_tail_is_only_found_by_a_deep_check() -> None:
    pixels = smooth()
    pixels[50:] = 128
    data = encode(pixels)

    assert small_validator().validate_bytes(data).is_valid
    result = deep_validator().validate_bytes(data)
    assert not result.is_valid
    assert result.is_partial
    assert result.reason == result.faults[0].sentence
    assert result.faults[0].kind is PictureFaultKind.GREY_TAIL


def test_a_deep_check_keeps_the_words_of_the_specified_ones_and_adds_its_findings() -> None:
    pixels = smooth()
    pixels[30:] = 0

    result = deep_validator().validate_bytes(encode(pixels))

    assert result.reason == "Image has 53.1% blank/black pixels (threshold: 50.0%)"
    assert [fault.kind for fault in result.faults] == [PictureFaultKind.BLACK_TAIL]


def test_a_deep_check_includes_the_specified_search_for_a_dark_bottom() -> None:
    pixels = smooth()
    # Dark enough to be missing, too uneven to be one colour.
    pixels[44:] = np.random.default_rng(1).integers(0, 10, (20, SIZE, 3))

    result = deep_validator().validate_bytes(encode(pixels))

    assert result.reason == "Partial render detected: 100.0% of bottom rows are blank"


def test_a_truncated_file_has_the_specified_reason_and_its_own_name() -> None:
    data = encode(smooth())

    result = deep_validator().validate_bytes(data[:-12])

    assert result.reason is not None
    assert result.reason.startswith("PIL verification failed: ")
    assert [fault.kind for fault in result.faults] == [PictureFaultKind.TRUNCATED_FILE]


def test_a_file_that_is_too_small_because_it_was_cut_says_both() -> None:
    result = ImageValidator(deep=True).validate_bytes(encode(noise())[:-30])

    assert result.reason is not None
    assert result.reason.startswith("File too small")
    assert result.is_partial


def test_an_honest_picture_passes_the_deep_check() -> None:
    assert deep_validator().validate_bytes(encode(smooth())).is_valid
    assert deep_validator().validate_bytes(encode(noise())).is_valid


@pytest.mark.parametrize(
    ("width", "height", "least", "most"),
    [(1024, 1024, 100_000, 10_000_000), (512, 512, 25_000, 10_000_000), (2048, 1024, 200_000, 20_000_000)],
)
def test_bounds_of_the_files_size_follow_the_area(width: int, height: int, least: int, most: int) -> None:
    validator = ImageValidator.for_size(width, height)

    assert (validator.min_file_size, validator.max_file_size) == (least, most)
