"""The words that the embedded model knows, and what the colour words look like."""

from typing import Final

RGB = tuple[float, float, float]

COLOURS: Final[dict[str, RGB]] = {
    "red": (0.86, 0.13, 0.14),
    "green": (0.16, 0.62, 0.22),
    "blue": (0.13, 0.27, 0.85),
    "yellow": (0.97, 0.86, 0.14),
    "purple": (0.50, 0.16, 0.68),
    "orange": (0.97, 0.52, 0.08),
    "pink": (0.98, 0.58, 0.76),
    "cyan": (0.15, 0.82, 0.88),
    "white": (0.95, 0.95, 0.94),
    "brown": (0.44, 0.26, 0.13),
}
"""Colour words and their sRGB centre, each channel 0 to 1. No channel triple is dark: a picture of any two of them
passes a check that counts pixels below 10 of 255 in all channels."""

SHAPES: Final = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")
SIZES: Final = ("small", "medium", "large")
POSITIONS: Final = ("center", "top", "bottom", "left", "right")
FILLS: Final = ("plain", "striped", "dotted")
RELATIONS: Final = ("left of", "above")

SYNONYMS: Final[dict[str, str]] = {
    "centre": "center",
    "middle": "center",
    "big": "large",
    "huge": "large",
    "little": "small",
    "tiny": "small",
    "stripes": "striped",
    "dots": "dotted",
    "spotted": "dotted",
    "violet": "purple",
    "solid": "plain",
}
"""Other words for the same thing; the captions of the training pictures use them now and then."""

# fmt: off
GLUE: Final = (
    "a", "an", "the", "on", "of", "in", "at", "to", "with", "and", "next", "over", "under", "above",
    "below", "beside", "side", "background", "backdrop", "against", "picture", "painting", "image",
    "drawing", "photo", "is", "there", "placed", "near", "one", "two", ",", "it", "its",
)
# fmt: on
"""Words that carry the sentence, not the picture."""

PAD, START, END, UNKNOWN = "<pad>", "<start>", "<end>", "<unknown>"

MAX_TOKENS: Final = 77
"""Length of a tokenised prompt, the start and end marks included; the usual length of CLIP text encoders."""


def all_tokens() -> tuple[str, ...]:
    """Every token in the order of its id. The order is part of the trained weights: append, never reorder."""
    words = [*COLOURS, *SHAPES, *SIZES, *POSITIONS, *FILLS, *SYNONYMS, *GLUE]
    return tuple(dict.fromkeys([PAD, START, END, UNKNOWN, *words]))
