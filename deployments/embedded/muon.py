"""Muon: momentum whose direction is made orthogonal, for weights that are matrices (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/). Here it needs about 0.6 of AdamW's steps for the same loss.

torch.optim.Muon takes two-dimensional weights only; most of the denoiser's are convolutions.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration, from the source above."""
_ITERATIONS = 5


def orthogonal(matrix: Tensor) -> Tensor:
    """Nearly the nearest matrix whose singular values are all 1; same shape.

    The iteration X <- aX + b(XX')X + c(XX')(XX')X only ever multiplies from the left, so it runs on the small Gram
    matrix and touches the long side twice.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    gram = wide @ wide.T
    a, b, c = _COEFFICIENTS
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    left: Tensor = identity
    for _ in range(_ITERATIONS):
        factor = a * identity + b * gram + c * (gram @ gram)
        left = factor @ left
        gram = factor @ gram @ factor
    out: Tensor = left @ wide
    return out if matrix.shape[0] <= matrix.shape[1] else out.T


class Muon(torch.optim.Optimizer):
    """Steps of a fixed size per layer. Weights of more than two dimensions are seen as (outputs, everything else)."""

    def __init__(
        self, weights: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates every weight that has a gradient; a closure is not supported."""
        if closure is not None:
            raise ValueError("Muon takes no closure; compute the gradients first")
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"].lerp_(weight.grad, 1.0 - group["momentum"])
                ahead = weight.grad.lerp(momentum, group["momentum"]).flatten(1)
                rows, columns = ahead.shape
                size = group["lr"] * max(1.0, rows / columns) ** 0.5
                weight.mul_(1.0 - group["lr"] * group["weight_decay"])
                weight.add_(orthogonal(ahead).view_as(weight), alpha=-size)
