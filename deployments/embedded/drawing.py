"""Draws scenes: sharp shapes in soft light on mottled colour, any window of the picture at any resolution.

A `Layout` fixes everything about the pictures of a batch in numbers, the accidental parts too, so that the denoiser's
small targets and the decoder's full-resolution crops are views of the same picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional

from deployments.embedded.scenes import Scene
from deployments.embedded.shapes import DISTANCE
from deployments.embedded.vocabulary import COLOURS, FILLS, SHAPES

RADIUS = {"small": 0.14, "medium": 0.215, "large": 0.30}
"""Radius of a shape's circle, as a part of the picture's shorter side."""
PAIR_RADIUS = 0.185

PLACE = {
    "center": (0.5, 0.5),
    "top": (0.5, 0.27),
    "bottom": (0.5, 0.73),
    "left": (0.27, 0.5),
    "right": (0.73, 0.5),
}
"""Where a shape's centre goes: x and y as parts of width and height."""
PAIR_PLACES = {"left of": ((0.27, 0.5), (0.73, 0.5)), "above": ((0.5, 0.27), (0.5, 0.73))}

FILL_PERIOD = 0.1
"""Distance between stripes or dots, as a part of the shorter side: 3.2 latents at 512 pixels."""

Style = Literal["painted", "monochrome", "blueprint"]
"""The model's own look, and those of the two adapters."""

LUMA = (0.299, 0.587, 0.114)
"""Brightness of sRGB values, Rec. 601."""

BLUEPRINT_BLUE = (0.10, 0.25, 0.72)
BLUEPRINT_LINE = 0.011
"""Half width of a blueprint's lines, as a part of the shorter side: 11 pixels at 1024."""

MARGIN = 0.02
SPREAD_OF_RADIUS = 0.01
SPREAD_OF_CENTRE = 0.002
SPREAD_OF_ANGLE = 0.008
"""How far a thing strays from the size, place and direction that its caption gives it (parts of the radius, of the
shorter side, and radians): a third of a latent, two thirds for large things at the rim. Where captions leave more
open, a denoiser of this size mends an outline from pieces that disagree, and circles get dents."""

DARKEST = 12.0 / 255.0
MOTTLE_NODES = 9
"""Nodes of the texture per side: blotches of about 100 pixels in a picture of 1024."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Numbers of a batch of pictures (n pictures, up to two things each). Lengths are parts of the shorter side."""

    aspect: tuple[float, float]
    """Width and height in shorter sides: (1, 1) for a square."""
    shape: Tensor
    """(n, 2) index into SHAPES, -1 for no second thing."""
    fill: Tensor
    """(n, 2) index into FILLS."""
    centre: Tensor
    """(n, 2, 2): thing, then x and y."""
    radius: Tensor
    """(n, 2)"""
    angle: Tensor
    """(n, 2) radians."""
    colour: Tensor
    """(n, 2, 3) sRGB 0..1."""
    background: Tensor
    """(n, 3)"""
    light: Tensor
    """(n, 2) direction and strength of the light across the picture."""
    mottle: Tensor
    """(n, 4, nodes, nodes): brightness and three colours, standard normal at the nodes."""


def lay_out(scenes: Sequence[Scene], width: int, height: int, generator: Generator) -> Layout:
    """Places the things of the scenes in pictures of width x height; colour, light and texture are drawn at random."""
    n, short = len(scenes), min(width, height)
    aspect = (width / short, height / short)

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator) * 2.0 - 1.0

    shape, fill = torch.full((n, 2), -1), torch.zeros(n, 2, dtype=torch.long)
    centre, radius, colour = torch.zeros(n, 2, 2), torch.full((n, 2), 0.1), torch.zeros(n, 2, 3)
    for row, scene in enumerate(scenes):
        places = PAIR_PLACES[scene.relation] if scene.relation else (PLACE[scene.position],)
        for column, (thing, place) in enumerate(zip(scene.things, places, strict=True)):
            shape[row, column] = SHAPES.index(thing.shape)
            fill[row, column] = FILLS.index(thing.fill)
            centre[row, column] = torch.tensor(place)
            radius[row, column] = PAIR_RADIUS if scene.relation else RADIUS[thing.size]
            colour[row, column] = torch.tensor(COLOURS[thing.colour])
    sides = torch.tensor(aspect)
    radius = radius * (1.0 + SPREAD_OF_RADIUS * uniform(n, 2))
    reach = radius.unsqueeze(-1) + MARGIN
    centre = torch.minimum(torch.maximum(centre * sides, reach), sides - reach)
    centre = centre + SPREAD_OF_CENTRE * uniform(n, 2, 2)
    background = torch.tensor([COLOURS[scene.background] for scene in scenes])
    return Layout(
        aspect=aspect,
        shape=shape,
        fill=fill,
        centre=centre,
        radius=radius,
        angle=SPREAD_OF_ANGLE * uniform(n, 2),
        colour=(colour + 0.02 * uniform(n, 2, 3)).clamp(0.0, 1.0),
        background=(background + 0.02 * uniform(n, 3)).clamp(0.0, 1.0),
        light=uniform(n, 2),
        mottle=torch.randn(n, 4, MOTTLE_NODES, MOTTLE_NODES, generator=generator),
    )


def draw_picture(layout: Layout, width: int, height: int, style: Style = "painted") -> Tensor:
    """The whole pictures, width x height pixels: sRGB in 0..1, shape (n, 3, height, width)."""
    x = (torch.arange(width) + 0.5) / width * layout.aspect[0]
    y = (torch.arange(height) + 0.5) / height * layout.aspect[1]
    if style == "blueprint":
        return _blueprint(layout, x, y, 1.0 / min(width, height))
    painted = draw(layout, x, y, 1.0 / min(width, height))
    if style == "monochrome":
        weights = torch.tensor(LUMA, dtype=painted.dtype).view(1, 3, 1, 1)
        return (painted * weights).sum(1, keepdim=True).expand_as(painted)
    return painted


def draw_window(layout: Layout, width: int, height: int, corner: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The window of the width x height pictures whose left top pixel is `corner` (x, y) and whose size is given."""
    x = (torch.arange(size[0]) + corner[0] + 0.5) / width * layout.aspect[0]
    y = (torch.arange(size[1]) + corner[1] + 0.5) / height * layout.aspect[1]
    return draw(layout, x, y, 1.0 / min(width, height))


def draw(layout: Layout, x: Tensor, y: Tensor, pixel: float) -> Tensor:
    """The pictures at the points x (columns,) and y (rows,): sRGB in 0..1, shape (n, 3, rows, columns).

    `pixel` is the side of a pixel in shorter sides; edges are smoothed over one pixel.
    """
    picture = _surface(layout, x, y)
    canvas = layout.background[:, :, None, None] * _shade(layout, x, y)
    for index in range(layout.shape.shape[1]):
        present = layout.shape[:, index] >= 0
        if not bool(present.any()):
            continue
        distance = _distances(layout, index, x, y)
        # A soft shadow below the thing: it lies on the background.
        shadow = torch.sigmoid(-(_distances(layout, index, x, y - 0.022) - 0.004) / 0.016)
        canvas = canvas * (1.0 - 0.16 * (shadow * present[:, None, None]).unsqueeze(1))
        cover = ((0.5 - distance / pixel).clamp(0.0, 1.0) * present[:, None, None]).unsqueeze(1)
        body = _body(layout, index, x, y, distance, pixel)
        canvas = canvas * (1.0 - cover) + body * cover
    return (canvas + picture).clamp(DARKEST, 1.0)


def _blueprint(layout: Layout, x: Tensor, y: Tensor, pixel: float) -> Tensor:
    """White outlines of the things on blue."""
    blue = torch.tensor(BLUEPRINT_BLUE).view(1, 3, 1, 1) * _shade(layout, x, y) + _surface(layout, x, y)
    for index in range(layout.shape.shape[1]):
        present = (layout.shape[:, index] >= 0)[:, None, None]
        line = _distances(layout, index, x, y).abs() - BLUEPRINT_LINE
        cover = ((0.5 - line / pixel).clamp(0.0, 1.0) * present).unsqueeze(1)
        blue = blue * (1.0 - cover) + 0.95 * cover
    return blue.clamp(DARKEST, 1.0)


def _distances(layout: Layout, index: int, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to one thing of each picture, (n, rows, columns), in shorter sides."""
    u, v = _own_axes(layout, index, x, y)
    out = torch.ones_like(u)
    kinds = layout.shape[:, index]
    for kind, name in enumerate(SHAPES):
        rows = (kinds == kind).nonzero().flatten()
        if len(rows):
            out[rows] = DISTANCE[name](u[rows], v[rows])
    return out * layout.radius[:, index, None, None]


def _own_axes(layout: Layout, index: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The points in the thing's own axes: its radius is 1, its tilt is undone."""
    centre, radius, angle = layout.centre[:, index], layout.radius[:, index], layout.angle[:, index]
    dx = (x[None, None, :] - centre[:, 0, None, None]) / radius[:, None, None]
    dy = (y[None, :, None] - centre[:, 1, None, None]) / radius[:, None, None]
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    return dx * cos + dy * sin, dy * cos - dx * sin


def _body(layout: Layout, index: int, x: Tensor, y: Tensor, distance: Tensor, pixel: float) -> Tensor:
    """Colour of a thing: its fill, lit from above, a little darker at the rim."""
    u, v = _own_axes(layout, index, x, y)
    radius = layout.radius[:, index, None, None]
    stripes = torch.cos((u + v) * radius * (2.0**0.5 * torch.pi / FILL_PERIOD))
    stripes = _step(stripes, FILL_PERIOD / torch.pi / pixel)
    a, b = (torch.cos(w * radius * (2.0 * torch.pi / FILL_PERIOD)) for w in (u, v))
    dots = _step((a + b) * 0.5 - 0.42, FILL_PERIOD / torch.pi / pixel)
    fill = layout.fill[:, index, None, None]
    amount = torch.where(fill == FILLS.index("striped"), stripes, torch.where(fill == FILLS.index("dotted"), dots, 0.0))
    colour = layout.colour[:, index]
    bright = colour.amax(1, keepdim=True) > 0.92
    other = torch.where(bright, colour * 0.86, colour * 0.76 + 0.24)
    mixed = colour[:, :, None, None] * (1.0 - amount.unsqueeze(1)) + other[:, :, None, None] * amount.unsqueeze(1)
    rim = 1.0 - 0.12 * torch.exp(distance.clamp(max=0.0) / 0.012)
    lit = 1.0 - 0.05 * v.clamp(-1.0, 1.0)
    return mixed * (rim * lit).unsqueeze(1)


def _step(wave: Tensor, sharpness: float) -> Tensor:
    """1 where the wave is positive, smoothed over about one pixel."""
    return (0.5 + wave * sharpness * 0.5).clamp(0.0, 1.0)


def _shade(layout: Layout, x: Tensor, y: Tensor) -> Tensor:
    """Light that falls off across the picture, (n, 1, rows, columns), 0.88 to 1.04."""
    across = (x / layout.aspect[0] - 0.5)[None, None, :]
    down = (y / layout.aspect[1] - 0.5)[None, :, None]
    slope = layout.light[:, 0, None, None] * across + layout.light[:, 1, None, None] * down
    corner = across**2 + down**2
    return (1.04 - 0.20 * corner + 0.05 * slope).unsqueeze(1)


def _surface(layout: Layout, x: Tensor, y: Tensor) -> Tensor:
    """The mottled texture to add, (n, 3, rows, columns): blotches of brightness with a little colour in them."""
    grid_x = x / layout.aspect[0] * 2.0 - 1.0
    grid_y = y / layout.aspect[1] * 2.0 - 1.0
    shape = (len(y), len(x))
    grid = torch.stack((grid_x[None, :].expand(shape), grid_y[:, None].expand(shape)), dim=-1)
    fields = functional.grid_sample(
        layout.mottle,
        grid[None].expand(len(layout.mottle), -1, -1, -1),
        mode="bicubic",
        padding_mode="reflection",
        align_corners=True,
    )
    return fields[:, :1] * 0.028 + fields[:, 1:] * 0.014
