import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from stress.pixels import Pixels
from stress.validate import exit_code, summary, to_json, to_table, validate_paths


def noise(seed: int = 1, side: int = 256) -> Pixels:
    return np.random.default_rng(seed).integers(10, 256, (side, side, 3), dtype=np.uint8)


def encode(pixels: Pixels, image_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "below" / "deeper").mkdir(parents=True)
    (tmp_path / "a.png").write_bytes(encode(noise(1)))
    (tmp_path / "below" / "b.JPG").write_bytes(encode(noise(2), "JPEG"))
    (tmp_path / "below" / "deeper" / "c.png").write_bytes(encode(noise(3)))
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_text("no picture")
    return tmp_path


def shown(paths: list[Path | str | bytes]) -> str:
    console = Console(width=200, file=io.StringIO(), force_terminal=False)
    console.print(to_table(validate_paths(paths, any_size=True)))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_folder_is_searched_for_pictures_and_nothing_else(folder: Path) -> None:
    verdicts = validate_paths([folder], any_size=True)

    names = [str(Path(verdict.name).relative_to(folder)) for verdict in verdicts]
    assert names == ["a.png", "below/b.JPG", "below/deeper/c.png"]
    assert all(verdict.is_valid for verdict in verdicts)
    assert exit_code(verdicts) == 0


def test_folders_below_are_left_out_when_asked(folder: Path) -> None:
    assert len(validate_paths([folder], any_size=True, recursive=False)) == 1


def test_a_file_that_is_named_is_judged_whatever_its_name(folder: Path) -> None:
    (verdict,) = validate_paths([folder / "notes.txt"], any_size=True)

    assert not verdict.is_valid
    assert exit_code([verdict]) == 1


def test_a_file_that_several_paths_lead_to_is_judged_once(folder: Path) -> None:
    (folder / "link.png").symlink_to(folder / "a.png")

    assert len(validate_paths([folder / "a.png", folder, str(folder / "below")], any_size=True)) == 3


def test_the_limits_are_those_of_1024_pixels_unless_another_size_is_asked(folder: Path) -> None:
    path = folder / "a.png"

    (as_specified,) = validate_paths([path])
    (asked,) = validate_paths([path], width=256, height=256)
    (wide,) = validate_paths([path], width=512, height=256)

    assert as_specified.result.reason == "Dimension mismatch: expected 1024x1024, got 256x256"
    assert asked.is_valid
    assert wide.result.reason == "Dimension mismatch: expected 512x256, got 256x256"


def test_the_least_size_of_a_file_is_in_proportion_to_the_pictures_area(folder: Path) -> None:
    y, x = np.mgrid[0:256, 0:256]
    plain = encode(np.stack((y // 8 * 8, x // 8 * 8, y // 8 * 8), axis=-1).astype(np.uint8))
    assert len(plain) < 6250

    (verdict,) = validate_paths([plain], any_size=True)

    assert verdict.result.reason == f"File too small ({len(plain)} bytes, expected >6250)"


def test_a_size_and_any_size_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="not for both"):
        validate_paths([], width=512, any_size=True)


def test_bytes_and_standard_input_are_judged() -> None:
    data = encode(noise())

    verdicts = validate_paths([data, "-"], any_size=True, standard_input=io.BytesIO(data[:-12]))

    assert [(verdict.name, verdict.is_valid) for verdict in verdicts] == [("bytes 1", True), ("standard input", False)]
    assert verdicts[1].result.is_partial


def test_what_is_wrong_beyond_the_specified_checks_is_found_unless_left_out(tmp_path: Path) -> None:
    pixels = np.array(Image.fromarray(noise(side=8)).resize((256, 256)))
    pixels[200:] = 128
    data = encode(pixels)

    (deep,), (shallow,) = (validate_paths([data], any_size=True, deep=deep) for deep in (True, False))

    assert deep.result.reason is not None
    assert deep.result.reason.startswith("Grey tail: the bottom 21.9% of the rows (56 of 256)")
    assert shallow.is_valid


def test_a_file_above_the_limit_is_refused_unread_with_its_size(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(20_000_000)

    (verdict,) = validate_paths([path])

    assert verdict.result.reason == "File too large (20000000 bytes, expected <10000000)"
    assert verdict.sha256 is None


def test_equal_pictures_under_different_names_are_a_warning(folder: Path) -> None:
    (folder / "z.png").write_bytes((folder / "a.png").read_bytes())

    verdicts = validate_paths([folder], any_size=True)

    twins = {Path(verdict.name).name: [Path(name).name for name in verdict.same_as] for verdict in verdicts}
    assert twins == {"a.png": ["z.png"], "z.png": ["a.png"], "b.JPG": [], "c.png": []}
    assert exit_code(verdicts) == 0
    assert "2 have the same bytes as another" in summary(verdicts)


def test_exit_codes_tell_invalid_from_missing(tmp_path: Path) -> None:
    missing, empty = tmp_path / "none.png", tmp_path / "empty"
    empty.mkdir()

    (absent,) = validate_paths([missing])

    assert absent.result.reason == f"File does not exist: {missing}"
    assert exit_code([absent]) == 2
    assert exit_code(validate_paths([empty])) == 2
    assert exit_code(validate_paths([missing, encode(noise())], any_size=True)) == 2
    assert exit_code(validate_paths([missing, b"no picture"])) == 1


def test_a_file_that_may_not_be_read_is_invalid_and_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")

    verdicts = validate_paths([tmp_path / "loop.png", encode(noise())], any_size=True)

    assert [verdict.is_valid for verdict in verdicts] == [False, True]


def test_json_has_every_figure(folder: Path) -> None:
    first, *_ = json.loads(to_json(validate_paths([folder], any_size=True)))

    assert first["name"] == str(folder / "a.png")
    assert first["result"]["is_valid"] is True
    assert first["result"]["dimensions"] == [256, 256]
    assert first["result"]["faults"] == []
    assert first["same_as"] == []


def test_a_name_that_is_no_text_can_be_reported(tmp_path: Path) -> None:
    path = Path(str(tmp_path) + "/\udcff.png")
    path.write_bytes(encode(noise()))

    verdicts = validate_paths([tmp_path], any_size=True)

    assert json.loads(to_json(verdicts))[0]["result"]["is_valid"]


def test_the_table_shows_names_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "[red]x\x1b[2J.png"
    path.write_bytes(b"no picture")

    text = shown([path, encode(noise())])

    assert "[red]x\N{REPLACEMENT CHARACTER}[2J.png" in text.replace("\n", "")
    assert "INVALID" in text
    assert "2 checked, 1 valid, 1 invalid." in text
