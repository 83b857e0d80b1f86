"""Signed distances of the eight shapes: negative inside, positive outside, about 1 in a direction per unit.

Formulas after Inigo Quilez, "2D distance functions" (https://iquilezles.org/articles/distfunctions2d/). Every shape
fits into the unit circle; y points down, as in pictures.
"""

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor


def circle(x: Tensor, y: Tensor) -> Tensor:
    """Disc of radius 0.88."""
    return torch.sqrt(x * x + y * y + 1e-12) - 0.88


def square(x: Tensor, y: Tensor) -> Tensor:
    """Axis-parallel square of half side 0.74."""
    return _box(x, y, 0.74, 0.74)


def triangle(x: Tensor, y: Tensor) -> Tensor:
    """Isosceles triangle that points up."""
    height = 0.62
    lean = math.hypot(2.0, 1.0)
    sides = (2.0 * x.abs() - (y + 1.0)) / lean
    return torch.maximum(sides, y - height)


def star(x: Tensor, y: Tensor) -> Tensor:
    """Five-pointed star, one point up, inner radius 0.42 of the outer."""
    sector = math.pi / 5.0
    angle = torch.atan2(x, -y)
    # Fold into one half of one point: 0 at the tip's direction, `sector` at the notch's.
    folded = (torch.remainder(angle + sector, 2.0 * sector) - sector).abs()
    radius = torch.sqrt(x * x + y * y + 1e-12)
    px, py = radius * torch.cos(folded), radius * torch.sin(folded)
    tip = (1.0, 0.0)
    notch = (0.42 * math.cos(sector), 0.42 * math.sin(sector))
    edge_x, edge_y = notch[0] - tip[0], notch[1] - tip[1]
    return ((px - tip[0]) * edge_y - (py - tip[1]) * edge_x) / math.hypot(edge_x, edge_y)


def ring(x: Tensor, y: Tensor) -> Tensor:
    """Annulus between the radii 0.46 and 0.92."""
    return (torch.sqrt(x * x + y * y + 1e-12) - 0.69).abs() - 0.23


def cross(x: Tensor, y: Tensor) -> Tensor:
    """Plus sign with arms of half width 0.3."""
    return torch.minimum(_box(x, y, 0.92, 0.3), _box(x, y, 0.3, 0.92))


def diamond(x: Tensor, y: Tensor) -> Tensor:
    """Rhombus, 1.3 wide and 2 high: higher than wide, so that it is not a turned square."""
    width, height = 0.65, 1.0
    return (x.abs() * height + y.abs() * width - width * height) / math.hypot(width, height)


def heart(x: Tensor, y: Tensor) -> Tensor:
    """Heart with its tip down."""
    # Quilez' heart stands on the origin, 1.1 high, y up.
    px, py = x.abs() / 1.62, (0.86 - y) / 1.62
    lobe = torch.sqrt((px - 0.25) ** 2 + (py - 0.75) ** 2 + 1e-12) - math.sqrt(2.0) / 4.0
    top = px * px + (py - 1.0) ** 2
    along = 0.5 * torch.clamp(px + py, min=0.0)
    side = (px - along) ** 2 + (py - along) ** 2
    low = torch.sqrt(torch.minimum(top, side) + 1e-12) * torch.sign(px - py)
    return torch.where(px + py > 1.0, lobe, low) * 1.62


def _box(x: Tensor, y: Tensor, half_width: float, half_height: float) -> Tensor:
    return torch.maximum(x.abs() - half_width, y.abs() - half_height)


DISTANCE: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "ring": ring,
    "cross": cross,
    "diamond": diamond,
    "heart": heart,
}
