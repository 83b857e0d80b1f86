"""Looks at a picture and says what is on it, by plain measurement: no trained part, so that it cannot flatter.

The background is the commonest colour along the rim; what differs from it in more than brightness is the thing; its
colour is the name that most of its pixels are nearest to; its shape is the ideal mask, laid over it with the same
centroid and area, that overlaps best.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from deployments.embedded.drawing import MARGIN, PAIR_PLACES, PLACE, RADIUS
from deployments.embedded.scenes import Scene
from deployments.embedded.shapes import DISTANCE
from deployments.embedded.vocabulary import COLOURS, SHAPES

WORKING_SIDE: Final = 128
"""Pictures are looked at with this shorter side."""
RIM: Final = 0.05
DIFFERENT: Final = 0.13
"""Distance in sRGB from every shade of the background from which on a pixel belongs to a thing; more for pixels
that have the background's name, because the texture strays."""
SHADES: Final = (0.78, 0.84, 0.90, 0.96, 1.02, 1.08)
"""Light and shadow on the background, as factors."""
TILTS: Final = (-0.08, 0.0, 0.08)
PLACE_TOLERANCE: Final = 0.12
"""How far from its place a thing's centroid may be, as a part of the shorter side."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What the grader sees. Centroids are parts of width and height; `shape` is that of all things together."""

    background: str
    colours: dict[str, float]
    """Part of the things' pixels that each colour has, the commonest first."""
    shape: str
    overlap: float
    """Intersection over union with the ideal mask of the shape."""
    centroid: tuple[float, float]
    centroids: dict[str, tuple[float, float]]
    """Centroid of the pixels of each colour."""


@dataclass(frozen=True, slots=True)
class Grade:
    """Which parts of a scene a picture shows. For two things `colour` means both, `position` their relation, and
    `shape` is not asked."""

    background: bool
    colour: bool
    shape: bool | None
    position: bool


def pixels_of(image: Image.Image) -> Tensor:
    """sRGB in 0..1, (3, height, width)."""
    raw = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return raw.view(image.height, image.width, 3).permute(2, 0, 1).float() / 255.0


def look(picture: Tensor) -> Sight:
    """Looks at one picture, sRGB in 0..1 of shape (3, height, width)."""
    small = _shrink(picture)
    names = list(COLOURS)
    palette = torch.tensor(list(COLOURS.values()))
    nearest = torch.cdist(small.flatten(1).T, palette).argmin(1).view(small.shape[1:])
    background = names[int(nearest[_rim(nearest)].mode().values)]
    mask = _things(small, nearest == names.index(background))
    if int(mask.sum()) < 12:
        return Sight(background, {}, "nothing", 0.0, (0.5, 0.5), {})
    counts = torch.bincount(nearest[mask], minlength=len(names)) / mask.sum()
    order = [int(index) for index in counts.argsort(descending=True) if counts[index] > 0.02]
    shape, overlap = _best_shape(mask)
    return Sight(
        background=background,
        colours={names[index]: float(counts[index]) for index in order},
        shape=shape,
        overlap=overlap,
        centroid=_centroid(mask),
        centroids={names[index]: _centroid(mask & (nearest == index)) for index in order},
    )


def grade(picture: Tensor, scene: Scene) -> Grade:
    """Compares a picture, (3, height, width) in 0..1, with the scene that was asked for."""
    sight = look(picture)
    background = sight.background == scene.background
    wanted = [thing.colour for thing in scene.things]
    if scene.relation:
        present = all(sight.colours.get(colour, 0.0) >= 0.1 for colour in wanted)
        return Grade(background, present, None, present and _related(sight, scene))
    colour = next(iter(sight.colours), None) == wanted[0]
    return Grade(background, colour, sight.shape == scene.things[0].shape, _in_place(sight, scene, picture))


def _shrink(picture: Tensor) -> Tensor:
    height, width = picture.shape[1:]
    scale = WORKING_SIDE / min(height, width)
    size = (round(height * scale), round(width * scale))
    return functional.interpolate(picture[None], size=size, mode="area")[0]


def _rim(image: Tensor) -> Tensor:
    """Mask of a border along all sides, (height, width)."""
    height, width = image.shape
    edge = max(1, round(RIM * min(height, width)))
    mask = torch.ones(height, width, dtype=torch.bool)
    mask[edge:-edge, edge:-edge] = False
    return mask


def _things(small: Tensor, like_background: Tensor) -> Tensor:
    """Mask of what is neither background nor its shadow, without specks."""
    rim = _rim(like_background) & like_background
    colour = small[:, rim].median(1).values
    shades = torch.stack([(small - factor * colour[:, None, None]).norm(dim=0) for factor in SHADES])
    limit = torch.where(like_background, 1.6 * DIFFERENT, DIFFERENT)
    different = (shades.amin(0) > limit).float()[None, None]
    eroded = -functional.max_pool2d(-different, 3, 1, 1)
    return functional.max_pool2d(eroded, 3, 1, 1)[0, 0] > 0.5


def _centroid(mask: Tensor) -> tuple[float, float]:
    y, x = mask.nonzero(as_tuple=True)
    if len(x) == 0:
        return (0.5, 0.5)
    return (float(x.float().mean() + 0.5) / mask.shape[1], float(y.float().mean() + 0.5) / mask.shape[0])


def _best_shape(mask: Tensor) -> tuple[str, float]:
    """The shape whose ideal mask of the same centroid and area overlaps best, and that overlap."""
    ys, xs = mask.nonzero(as_tuple=True)
    area, centre_x, centre_y = float(len(xs)), float(xs.float().mean()), float(ys.float().mean())
    y = torch.arange(mask.shape[0], dtype=torch.float32)[:, None].expand(mask.shape) - centre_y
    x = torch.arange(mask.shape[1], dtype=torch.float32)[None, :].expand(mask.shape) - centre_x
    best = ("nothing", 0.0)
    for name in SHAPES:
        unit_area, offset_x, offset_y = _MOMENTS[name]
        radius = (area / unit_area) ** 0.5
        for tilt in TILTS:
            cos, sin = torch.cos(torch.tensor(tilt)), torch.sin(torch.tensor(tilt))
            u, v = (x * cos + y * sin) / radius + offset_x, (y * cos - x * sin) / radius + offset_y
            ideal = DISTANCE[name](u, v) < 0.0
            overlap = float((ideal & mask).sum()) / float((ideal | mask).sum())
            if overlap > best[1]:
                best = (name, overlap)
    return best


def _unit_moments(name: str) -> tuple[float, float, float]:
    """Area and centroid of a shape of radius 1."""
    line = (torch.arange(400) + 0.5) / 400.0 * 2.4 - 1.2
    x, y = line[None, :].expand(400, 400), line[:, None].expand(400, 400)
    inside = DISTANCE[name](x, y) < 0.0
    return float(inside.sum()) * 0.006**2, float(x[inside].mean()), float(y[inside].mean())


_MOMENTS: Final = {name: _unit_moments(name) for name in SHAPES}


def _in_place(sight: Sight, scene: Scene, picture: Tensor) -> bool:
    height, width = picture.shape[1:]
    short = min(height, width)
    reach = RADIUS[scene.things[0].size] + MARGIN
    off = 0.0
    for side, part, seen in zip((width, height), PLACE[scene.position], sight.centroid, strict=True):
        length = side / short
        place = min(max(part * length, reach), length - reach)
        off += (seen * length - place) ** 2
    return math.sqrt(off) <= PLACE_TOLERANCE


def _related(sight: Sight, scene: Scene) -> bool:
    first, second = (sight.centroids[thing.colour] for thing in scene.things)
    axis = 0 if scene.relation == "left of" else 1
    distance = PAIR_PLACES[scene.relation or "above"][1][axis] - PAIR_PLACES[scene.relation or "above"][0][axis]
    return bool(second[axis] - first[axis] > distance / 2.0)
