"""Each defect of the server that Darkroom replaces has a test that names it."""

import re
from pathlib import Path

LATER = {"D20", "D23", "D24"}
"""Image editing and other formats: not part of Darkroom yet."""


def test_every_defect_is_named_by_a_test() -> None:
    tests = Path(__file__).parents[1].rglob("test_*.py")
    named = {name for file in tests for name in re.findall(r'defect\("(D\d+)"\)', file.read_text())}
    assert {f"D{n}" for n in range(1, 25)} - LATER - named == set()
