"""Figures of the adapters' pictures: how grey, how blue."""

from collections.abc import Sequence

import torch
from rich.table import Table
from torch import Tensor

from deployments.embedded.grader import look


def saturation(picture: Tensor) -> float:
    """Mean saturation (HSV) of a picture, sRGB in 0..1 of shape (3, height, width): 0 for grey, 1 for pure colours."""
    brightest, darkest = picture.amax(0), picture.amin(0)
    return float(((brightest - darkest) / brightest.clamp(min=1e-6)).mean())


def table(title: str, pictures: Sequence[Tensor]) -> Table:
    """Mean saturation, and the part of the pictures whose background is blue."""
    blue = [look(picture).background == "blue" for picture in pictures]
    out = Table("figure", "value", title=title)
    out.add_row("mean saturation", f"{torch.tensor([saturation(picture) for picture in pictures]).mean():.3f}")
    out.add_row("blue background", f"{sum(blue) / len(blue):.1%}")
    return out
