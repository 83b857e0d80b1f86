"""Sentences for scenes, in several phrasings and word orders, and incomplete ones as people write them."""

from dataclasses import dataclass
from random import Random

from deployments.embedded.scenes import Scene, Thing, sample_scene
from deployments.embedded.vocabulary import SYNONYMS


@dataclass(frozen=True, slots=True)
class Caption:
    """A sentence, and which parts of its scene it tells; what it does not tell is drawn at random."""

    text: str
    background_told: bool = True
    shapes_told: bool = True
    colours_told: bool = True


# fmt: off
_UNKNOWN_WORDS = (
    "cute", "anime", "girl", "hair", "dragon", "sunset", "portrait", "beautiful", "detailed", "4k",
    "masterpiece", "castle", "mountain", "river", "style", "wearing", "holding", "soft", "light",
    "trending", "forest", "city", "cat", "dog", "robot", "please", "draw", "me", "my", "very",
)
# fmt: on
"""Stand-ins for words outside the vocabulary: all of them become the one unknown token."""


def caption(scene: Scene, random: Random) -> Caption:
    """A complete sentence for the scene: a reader could draw it."""
    body = _pair(scene, random) if scene.relation else _single(scene, random)
    return Caption(_with_background(body, scene.background, random))


def sample(random: Random, pairs: float = 0.25) -> tuple[Scene, Caption]:
    """A scene and a sentence; one in eight sentences is incomplete or has words that nobody knows.

    `pairs` is the part of the scenes with two things.
    """
    scene = sample_scene(random, pairs)
    if random.random() > 0.125:
        return scene, caption(scene, random)
    if random.random() < 0.4:
        return scene, _sprinkled(caption(scene, random), random)
    plain = Scene(scene.background, (Thing(scene.things[0].shape, scene.things[0].colour),))
    return plain, _incomplete(plain, random)


def _sprinkled(whole: Caption, random: Random) -> Caption:
    words = whole.text.split()
    front = random.choices(_UNKNOWN_WORDS, k=random.randint(0, 12))
    back = random.choices(_UNKNOWN_WORDS, k=random.randint(0, 30))
    if random.random() < 0.5:
        words.insert(0, random.choice(_UNKNOWN_WORDS))
    return Caption(" ".join([*front, *words, *back]))


def _incomplete(scene: Scene, random: Random) -> Caption:
    """Leaves out the background, the colours, the shapes or everything. For plain single things only, so that every
    attribute which the sentence does not name is either its default or drawn at random.
    """
    thing = scene.things[0]
    strange = " ".join(random.choices(_UNKNOWN_WORDS, k=random.randint(1, 8)))
    kind = random.randrange(5)
    if kind == 0:
        return Caption(f"{_article(random)}{thing.colour} {thing.shape}", background_told=False)
    if kind == 1:
        return Caption(f"{_article(random)}{thing.shape}", background_told=False, colours_told=False)
    if kind == 2:
        text = f"a {strange} with {thing.colour} {random.choice(_UNKNOWN_WORDS)}"
        return Caption(text, background_told=False, shapes_told=False)
    if kind == 3:
        text = f"{strange} on a {scene.background} background"
        return Caption(text, shapes_told=False, colours_told=False)
    text = random.choice(("", strange))
    return Caption(text, background_told=False, shapes_told=False, colours_told=False)


def _article(random: Random) -> str:
    return random.choice(("a ", "", "the ", "one ", "a painting of a ", "picture of a "))


def _say(word: str, random: Random) -> str:
    """The word or, one time in five, another word for it."""
    others = [other for other, meaning in SYNONYMS.items() if meaning == word]
    return random.choice(others) if others and random.random() < 0.2 else word


def _noun(thing: Thing, random: Random, *, default_said: float = 0.1) -> str:
    """ "large red striped circle", "red circle with stripes": a thing without article and place."""
    size = thing.size if thing.size != "medium" or random.random() < default_said else ""
    fill = thing.fill if thing.fill != "plain" or random.random() < default_said else ""
    if fill in ("striped", "dotted") and random.random() < 0.25:
        words = [
            _say(size, random),
            thing.colour,
            thing.shape,
            "with",
            "stripes" if fill == "striped" else "dots",
        ]
        return " ".join(word for word in words if word)
    colour_words = [_say(fill, random) if fill else "", thing.colour]
    if random.random() < 0.5:
        colour_words.reverse()
    # "stripes" and "dots" are nouns: only the other form can stand before the shape.
    adjectives = [{"stripes": "striped", "dots": "dotted"}.get(word, word) for word in colour_words]
    words = [_say(size, random) if size else "", *adjectives, thing.shape]
    return " ".join(word for word in words if word)


def _single(scene: Scene, random: Random) -> str:
    noun = _noun(scene.things[0], random)
    body = f"{_article(random)}{noun}"
    if scene.position == "center" and random.random() > 0.15:
        return body
    place = _say(scene.position, random)
    if scene.position == "center":
        return f"{body} {random.choice(('in', 'at'))} the {place}"
    form = random.randrange(4)
    if form == 0:
        return f"{body} at the {place}"
    if form == 1:
        return f"{body} on the {place}" + random.choice(("", " side"))
    if form == 2:
        return f"{place}, {body}" if random.random() < 0.5 else f"{body}, {place}"
    return f"at the {place} {body}" if random.random() < 0.3 else f"{body} placed at the {place}"


def _pair(scene: Scene, random: Random) -> str:
    first, second = (_noun(thing, random) for thing in scene.things)
    a, b = (random.choice(("a ", "a ", "the ", "")) for _ in range(2))
    if scene.relation == "left of":
        forms = (
            f"{a}{first} left of {b}{second}",
            f"{a}{first} to the left of {b}{second}",
            f"{b}{second} right of {a}{first}",
            f"{b}{second} to the right of {a}{first}",
            f"{a}{first} on the left and {b}{second} on the right",
        )
    else:
        forms = (
            f"{a}{first} above {b}{second}",
            f"{a}{first} over {b}{second}",
            f"{b}{second} below {a}{first}",
            f"{b}{second} under {a}{first}",
            f"{a}{first} at the top and {b}{second} at the bottom",
        )
    # The first form is the one that the documentation shows.
    return forms[0] if random.random() < 0.3 else random.choice(forms)


def _with_background(body: str, background: str, random: Random) -> str:
    form = random.randrange(6)
    if form <= 2:
        return f"{body} on {random.choice(('a ', 'a ', 'the ', ''))}{background} background"
    if form == 3:
        return f"{body}, {background} background"
    if form == 4:
        return f"{background} background, {body}" if random.random() < 0.5 else f"{body} against {background}"
    return f"{body} on {background}" if random.random() < 0.5 else f"{body} with a {background} backdrop"
