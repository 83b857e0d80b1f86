"""What a validator must install: the kit and its pytest files need no more than the stated packages."""

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_kit_imports_nothing_beyond_its_requirements() -> None:
    stated = {
        line.strip().lower().replace("-", "_")
        for line in (ROOT / "requirements_test_async.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    # Packages whose modules have another name, and what comes with one that is stated.
    given = {"pillow": "pil", "python_multipart": "multipart"}
    comes_with = {"anyio", "click", "markupsafe", "pydantic_core", "starlette", "yarl", "stress", "tests"}
    known = {given.get(name, name) for name in stated} | comes_with | {name.lower() for name in sys.stdlib_module_names}
    sources = [*(ROOT / "stress").rglob("*.py"), *(ROOT / "tests" / "e2e" / "async_inference").glob("*.py")]
    imported = {
        name.partition(".")[0].lower()
        for source in sources
        for node in ast.walk(ast.parse(source.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported - known == set()


def test_the_validators_pytest_files_import_nothing_of_the_service() -> None:
    program = (
        "import sys; import tests.e2e.async_inference.test_race_conditions, tests.conftest, tests.e2e.conftest; "
        "print(sorted({'ray', 'torch', 'diffusers', 'serve_app', 'deployments', 'callback'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert ended.stdout == "[]\n"
