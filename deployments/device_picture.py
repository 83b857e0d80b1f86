"""A picture on its way from the device to host memory."""

from dataclasses import dataclass

import torch

from deployments.errors import RenderBroken
from deployments.png import encode_png


@dataclass(frozen=True, slots=True)
class DevicePicture:
    """Pixels (uint8, height x width x 3) and whether all were finite, in host memory once `copied` has happened."""

    pixels: torch.Tensor
    finite: torch.Tensor
    copied: torch.cuda.Event | None
    compress_level: int

    def wait(self) -> None:
        """Block until the device has copied the pixels; before that their bytes are undefined."""
        if self.copied is not None:
            self.copied.synchronize()

    def png(self) -> bytes:
        """Return the encoded pixels. Raises RenderBroken if the model produced NaN or infinity."""
        if not bool(self.finite):
            raise RenderBroken("The model produced no picture (numbers that are not finite); try another dtype.")
        return encode_png(self.pixels.numpy(), self.compress_level)


def start_copy(image: torch.Tensor, width: int, height: int, compress_level: int) -> DevicePicture:
    """Crop the middle of `image` and start its way to host memory, on the current stream.

    `image` is what diffusers returns as "pt": float in 0...1 of shape (3, at least height, at least width). The pixels
    are those of its "pil" output: scaled in float32 and rounded half to even. Raises RenderBroken if it is too small.
    """
    rendered_height, rendered_width = image.shape[-2:]
    top, left = (rendered_height - height) // 2, (rendered_width - width) // 2
    if top < 0 or left < 0:
        raise RenderBroken(f"The model rendered {rendered_width}x{rendered_height} pixels instead of {width}x{height}.")
    cropped = image[:, top : top + height, left : left + width]
    pixels = cropped.permute(1, 2, 0).float().mul(255).round().to(torch.uint8).contiguous()
    finite = torch.isfinite(cropped).all()
    if image.device.type != "cuda":
        return DevicePicture(pixels.cpu(), finite.cpu(), None, compress_level)
    host_pixels, host_finite = (
        torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
        for tensor in (pixels, finite)
    )
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()
    return DevicePicture(host_pixels, host_finite, copied, compress_level)
