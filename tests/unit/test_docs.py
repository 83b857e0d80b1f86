"""The tables of the documentation are whole: what can be set, and what can be refused, stands in them."""

import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from deployments.models import ModelSettings
from serve_app.api.errors import _STATUS
from serve_app.settings import Settings

ROOT = Path(__file__).parents[2]


def rows(document: str, heading: str) -> str:
    """Return the first cells of the table rows below a heading, down to the next one."""
    section = (ROOT / "docs" / document).read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    cells = [line.split("|") for line in section.splitlines() if line.startswith("|")]
    return " ".join(" ".join(cell[1:3]) for cell in cells)


def names(settings: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Return the names of all settings, those of a group as `group.name`."""
    for name, field in settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from names(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_every_setting_is_in_the_table_of_settings() -> None:
    table = rows("operations.md", "All settings")
    assert [name for name in names(Settings) if f"`{name}`" not in table] == []


def test_every_setting_of_a_model_is_in_its_table() -> None:
    table = rows("adding-a-model.md", "Settings of a model")
    # Of a group that a row is about only the first is named in full.
    assert [n for n in names(ModelSettings) if f"`{n}`" not in table and f"`.{n.split('.')[-1]}`" not in table] == []


def test_every_refusal_is_in_the_table_of_refusals() -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "serve_app").rglob("*.py"))
    of_the_api = set(re.findall(r'(?:Refused|problem)\(\s*\d{3},\s*"([a-z_]+)"', text))
    assert len(of_the_api) > 5
    table = rows("protocol.md", "Refusals")
    codes = of_the_api | {error.code for error in _STATUS}
    assert sorted(code for code in codes if f"`{code}`" not in table) == []
