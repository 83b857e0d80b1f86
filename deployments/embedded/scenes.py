"""What a training picture shows, in words: one or two things on a background. Drawing turns it into pixels."""

from dataclasses import dataclass
from random import Random

from deployments.embedded.vocabulary import COLOURS, FILLS, POSITIONS, RELATIONS, SHAPES, SIZES


@dataclass(frozen=True, slots=True)
class Thing:
    """One object. Defaults are what a caption means that does not say otherwise."""

    shape: str
    colour: str
    size: str = "medium"
    fill: str = "plain"


@dataclass(frozen=True, slots=True)
class Scene:
    """One object at a position, or two in a relation (`things[0]` is left of, or above, `things[1]`)."""

    background: str
    things: tuple[Thing, ...]
    position: str = "center"
    relation: str | None = None


def sample_scene(random: Random, pairs: float = 0.25) -> Scene:
    """A scene of the grammar; attributes that captions may leave out take their default about half of the time.

    `pairs` is the part of the scenes with two things.
    """
    background, first, second = random.sample(list(COLOURS), 3)
    if random.random() < pairs:
        things = tuple(
            Thing(random.choice(SHAPES), colour, fill=_sometimes(random, 0.2, FILLS, "plain"))
            for colour in (first, second)
        )
        return Scene(background, things, relation=random.choice(RELATIONS))
    thing = Thing(
        shape=random.choice(SHAPES),
        colour=first,
        size=_sometimes(random, 0.6, SIZES, "medium"),
        fill=_sometimes(random, 0.45, FILLS, "plain"),
    )
    return Scene(background, (thing,), position=_sometimes(random, 0.6, POSITIONS, "center"))


def _sometimes(random: Random, probability: float, choices: tuple[str, ...], default: str) -> str:
    return random.choice(choices) if random.random() < probability else default
