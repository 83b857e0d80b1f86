"""What a start imports where: every second of it is one that the first picture waits for."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_whoever_builds_the_application_imports_neither_the_tracker_nor_a_model() -> None:
    heavy = {"torch", "diffusers", "callback.tracker", "alembic"}
    code = f"import sys, serve_app.app; print(sorted({heavy} & set(sys.modules)))"
    shown = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert shown.stdout == "[]\n"
