import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from faulty_work import draw, encode
from flaws import Submission
from PIL import EpsImagePlugin, Image

from stress.checks.outcome import Fault
from stress.checks.pictures import judge_picture, keep_picture, thumbnail

WHOLE = draw(Submission(prompt="a lighthouse", width=256, height=192))


def pixels() -> np.ndarray:
    return np.array(Image.open(io.BytesIO(WHOLE)))


def test_a_whole_picture_is_good_and_its_facts_are_told() -> None:
    judgement = judge_picture(WHOLE, 256, 192)
    facts = judgement.facts
    assert (judgement.fault, judgement.reason, facts.valid, facts.reason) == (None, None, True, None)
    assert (facts.width, facts.height, facts.size_bytes) == (256, 192, len(WHOLE))
    assert facts.sha256 == hashlib.sha256(WHOLE).hexdigest()


@pytest.mark.parametrize("rows", [12, 60, 150])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_tail_that_was_not_drawn_is_partial(rows: int, level: int) -> None:
    cut = pixels()
    cut[-rows:] = level
    judgement = judge_picture(encode(cut), 256, 192)
    assert judgement.fault is Fault.PARTIAL_PICTURE
    assert judgement.facts.reason == judgement.reason


def test_a_file_that_ends_early_is_partial() -> None:
    assert judge_picture(WHOLE[: len(WHOLE) // 2], 256, 192).fault is Fault.PARTIAL_PICTURE


@pytest.mark.parametrize(
    "data", [WHOLE + b"more", b"", b"no picture", encode(np.full((192, 256, 3), 90, np.uint8))], ids=len
)
def test_what_is_no_such_picture_is_invalid(data: bytes) -> None:
    assert judge_picture(data, 256, 192).fault is Fault.INVALID_PICTURE


def test_another_size_is_invalid_and_both_are_named() -> None:
    judgement = judge_picture(WHOLE, 256, 256)
    assert judgement.fault is Fault.INVALID_PICTURE
    assert judgement.reason == "Dimension mismatch: expected 256x256, got 256x192"


def test_a_strangers_postscript_is_not_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    def ghostscript(*_: object, **__: object) -> None:
        pytest.fail("Ghostscript was asked")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ghostscript)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 256 192\n%%EndComments\nshowpage\n%%EOF\n" + bytes(2000)
    with Image.open(io.BytesIO(eps)) as image:
        assert image.format == "EPS"
    judgement = judge_picture(eps, 256, 192)
    assert judgement.fault is not None
    assert judgement.facts.thumbnail is None


def test_a_picture_that_is_no_png_is_invalid() -> None:
    file = io.BytesIO()
    Image.open(io.BytesIO(WHOLE)).save(file, "JPEG", quality=95)
    assert judge_picture(file.getvalue(), 256, 192).fault is Fault.INVALID_PICTURE


@pytest.mark.parametrize("job_id", ["../../etc/passwd", "/tmp/x", ".hidden", "a/b", "", "x" * 300, "a\x00b"])  # noqa: S108
def test_an_id_that_is_a_path_names_no_file_elsewhere(job_id: str, tmp_path: Path) -> None:
    path = keep_picture(tmp_path / "pictures", job_id, b"data")
    assert path.parent == tmp_path / "pictures"
    assert path.name == f"{hashlib.sha256(job_id.encode()).hexdigest()}.png"


def test_a_second_picture_of_an_id_does_not_replace_the_first(tmp_path: Path) -> None:
    paths = [keep_picture(tmp_path, "a", data) for data in (b"one", b"two", b"three")]
    assert [path.name for path in paths] == ["a.png", "a.2.png", "a.3.png"]
    assert [path.read_bytes() for path in paths] == [b"one", b"two", b"three"]


def test_what_cannot_be_read_has_no_thumbnail() -> None:
    assert thumbnail(b"no picture") is None
    assert (thumbnail(WHOLE) or "").startswith("data:image/jpeg;base64,")
