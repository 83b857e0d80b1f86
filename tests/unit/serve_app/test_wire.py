"""A request means the same on the short way (`api.inference`) as on FastAPI's, or it does not take the short one."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from callback.clock import iso
from serve_app.api.wire import InferenceRequest


def on_the_general_way(body: bytes) -> InferenceRequest | None:
    try:
        return InferenceRequest.model_validate(json.loads(body))
    except ValueError:
        return None


def on_the_short_way(body: bytes) -> InferenceRequest | None:
    try:
        return InferenceRequest.model_validate_json(body)
    except ValidationError:
        return None


def test_any_expiry_that_is_taken_can_be_shown() -> None:
    for moment in ("9999-12-31T23:59:59.999999Z", "0001-01-01T00:00:00Z"):
        expiry = InferenceRequest(prompt="a", expiry=moment).expiry  # type: ignore[arg-type]  # as clients send it
        assert expiry is not None
        assert iso(expiry.timestamp())[:19] == moment[:19]


@pytest.mark.parametrize(
    "body",
    [
        b' {"prompt": "a"}\n',
        b'{"prompt": "a", "prompt": "b"}',
        b'{"prompt": "\\ud83d\\ude00 \\u00e9"}',
        b'{"prompt": "a", "width": 512.0, "seed": 1e2}',
        b'{"prompt": "a", "seed": 9223372036854775807}',
        b'{"prompt": "a", "seed": -0.0, "guidance_scale": 1e-400}',
        b'{"prompt": "a", "guidance_scale": 12.345678901234567890123456789}',
        b'{"prompt": "a", "expiry": "2030-01-01T12:00:00+02:00"}',
        b'{"prompt": "a", "unknown": [NaN, -Infinity, {"deep": [[[]]]}]}',
    ],
)
def test_what_is_valid_is_read_alike(body: bytes) -> None:
    read = on_the_short_way(body)
    assert read is not None
    assert read == on_the_general_way(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1]",
        b'{"prompt": "a"}x',
        b'{"prompt": " "}',
        b'{"prompt": "a\x00"}',
        b'{"prompt": "\\u0000"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "width": "512"}',
        b'{"prompt": "a", "width": true}',
        b'{"prompt": "a", "seed": 1.5}',
        b'{"prompt": "a", "seed": 9223372036854775808}',
        b'{"prompt": "a", "guidance_scale": NaN}',
        b'{"prompt": "a", "expiry": 1893456000}',
        # These FastAPI takes.
        '{"prompt": "a"}'.encode("utf-16"),
        b'\xef\xbb\xbf{"prompt": "a"}',
        b'{"prompt": "a", "unknown": "\\ud800"}',
        b'{"prompt": "a", "unknown": ' + 500 * b"[" + 500 * b"]" + b"}",
    ],
)
def test_what_is_wrong_or_odd_does_not_take_the_short_way(body: bytes) -> None:
    assert on_the_short_way(body) is None


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
fields = st.dictionaries(st.sampled_from(sorted(InferenceRequest.model_fields)) | st.text(max_size=5), values)


@given(fields, st.booleans())
def test_any_object_is_read_alike(fields: dict[str, Any], ascii_only: bool) -> None:
    body = json.dumps({"prompt": "a"} | fields, ensure_ascii=ascii_only).encode()
    assert on_the_short_way(body) == on_the_general_way(body)
