"""What a caption says, as a vector: the target that the text encoder is taught before the denoiser sees it.

A caption's meaning is a fixed set of choices (background colour, and per thing colour, shape, size, fill; place or
relation), each one-hot. A part that the caption does not tell is its "untold" choice. Learning to read this way takes
minutes and no pictures; the denoiser then starts from a text encoder that already understands word order.
"""

from typing import Final

import torch
from torch import Tensor

from deployments.embedded.captions import Caption
from deployments.embedded.scenes import Scene
from deployments.embedded.vocabulary import COLOURS, FILLS, POSITIONS, RELATIONS, SHAPES, SIZES

UNTOLD: Final = "untold"
NOTHING: Final = "nothing"

CHOICES: Final[tuple[tuple[str, ...], ...]] = (
    (*COLOURS, UNTOLD),
    (*COLOURS, UNTOLD),
    (*SHAPES, UNTOLD),
    SIZES,
    FILLS,
    (*POSITIONS, *RELATIONS),
    (*COLOURS, NOTHING),
    (*SHAPES, NOTHING),
    (*FILLS, NOTHING),
)
"""In order: background; first thing's colour, shape, size, fill; place or relation; second thing's colour, shape,
fill. With a relation, the first thing is the left or upper one."""

MEANING_WIDTH: Final = sum(len(choices) for choices in CHOICES)

ON: Final = 3.0
"""Value of a chosen entry; its alternatives are zero. About the size of a normalised vector's large entries."""


def choices_of(scene: Scene, said: Caption) -> tuple[str, ...]:
    """The words chosen in each of `CHOICES`."""
    first = scene.things[0]
    second = scene.things[1] if scene.relation else None
    return (
        scene.background if said.background_told else UNTOLD,
        first.colour if said.colours_told else UNTOLD,
        first.shape if said.shapes_told else UNTOLD,
        first.size,
        first.fill,
        scene.relation or scene.position,
        second.colour if second else NOTHING,
        second.shape if second else NOTHING,
        second.fill if second else NOTHING,
    )


def meaning_of(scene: Scene, said: Caption) -> Tensor:
    """The vector of a caption, (MEANING_WIDTH,)."""
    vector = torch.zeros(MEANING_WIDTH)
    offset = 0
    for choices, chosen in zip(CHOICES, choices_of(scene, said), strict=True):
        vector[offset + choices.index(chosen)] = ON
        offset += len(choices)
    return vector


def read(vector: Tensor) -> tuple[str, ...]:
    """The likeliest choices of a vector whose first MEANING_WIDTH entries are a meaning."""
    parts = torch.split(vector[:MEANING_WIDTH], [len(choices) for choices in CHOICES])
    return tuple(choices[int(part.argmax())] for choices, part in zip(CHOICES, parts, strict=True))
