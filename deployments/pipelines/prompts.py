"""Prompts that are longer than the text encoder takes: where they are cut, and what is lost."""

import inspect
from dataclasses import dataclass
from typing import Any

# Tokenizers without a limit of their own carry a huge number instead (transformers: VERY_LARGE_INTEGER, 1e30).
_NO_LIMIT = 100_000
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class TokenLimit:
    """A tokenizer of transformers, and how many tokens of it (with its special ones) the encoder takes."""

    tokenizer: Any
    tokens: int


def pipeline_token_limit(pipeline: Any) -> TokenLimit | None:
    """Return the limit of a pipeline that is not known better: the `max_sequence_length` it is called with, else the
    tokenizer's own."""
    tokenizer = getattr(pipeline, "tokenizer", None)
    parameter = inspect.signature(pipeline.__call__).parameters.get("max_sequence_length")
    tokens = parameter.default if parameter is not None else getattr(tokenizer, "model_max_length", None)
    for name in ("tokenizer_3", "tokenizer_2"):
        if parameter is not None and getattr(pipeline, name, None) is not None:
            tokenizer = getattr(pipeline, name)
            break
    if tokenizer is None or not isinstance(tokens, int) or tokens >= _NO_LIMIT:
        return None
    return TokenLimit(tokenizer, tokens)


def truncation_warning(field: str, text: str, limit: TokenLimit | None) -> str | None:
    """Say where `text`, the request's `field`, is cut and which words are dropped; None if all of it is used."""
    if limit is None or not text:
        return None
    cut = _cut_position(text, limit)
    dropped = text[cut:].strip() if cut is not None else ""
    if not dropped:
        return None
    shown = dropped if len(dropped) <= _SHOWN_CHARACTERS else dropped[:_SHOWN_CHARACTERS] + "…"
    return (
        f"{field}: cut after {cut} of {len(text)} characters, because the model reads at most {limit.tokens} tokens; "
        f"dropped: {shown!r}."
    )


def _cut_position(text: str, limit: TokenLimit) -> int | None:
    """Return the character after the last one that survives tokenization at the limit; None if nothing is cut."""
    if len(limit.tokenizer(text, truncation=False, verbose=False).input_ids) <= limit.tokens:
        return None
    if not getattr(limit.tokenizer, "is_fast", False):
        return _cut_by_trial(text, limit)
    kept = limit.tokenizer(text, truncation=True, max_length=limit.tokens, return_offsets_mapping=True)
    return max((end for _, end in kept["offset_mapping"]), default=0)


def _cut_by_trial(text: str, limit: TokenLimit) -> int:
    """Find the longest beginning that fits: for tokenizers written in Python, which keep no offsets."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        fits = len(limit.tokenizer(text[:middle], truncation=False, verbose=False).input_ids) <= limit.tokens
        low, high = (middle, high) if fits else (low, middle - 1)
    return low
