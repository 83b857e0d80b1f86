"""The autoencoder of the embedded model, and the weights that it starts from.

`AutoencoderKL` has group normalisation everywhere, which takes the overall colour out of flat pictures and makes a
pixel depend on the whole picture. `balance` makes the normalisation inert without leaving the stock class: of every
map that is normalised (as one group), two channels hold the constants +BALLAST and -BALLAST, which fix the variance,
and one holds minus the sum of the others, which fixes the mean at zero. What remains is an ordinary convolutional
network: a crop of a picture decodes as the whole picture does, so it can be trained on small crops.

`initialise` sets the encoder to an exact 16-fold area average in decorrelated colours, which is what it stays, and the
decoder to a smooth interpolation, which training then sharpens. Latents are therefore small pictures.
"""

import math
from collections.abc import Iterator

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

BALLAST = 256.0
RESERVED = 3
"""Channels of each normalised map that hold no picture: minus the sum, +BALLAST, -BALLAST."""

CHANNELS = (16, 16, 32, 64, 96)

LOG_VARIANCE = -30.0
"""The encoder is deterministic: the lower bound that diffusers clamps to."""

MEAN = (0.56, 0.48, 0.45)
"""Mean sRGB of the training pictures, 0 to 1."""

TO_LATENT = (
    (1.35, 1.45, 1.30),
    (2.40, -0.60, -1.90),
    (1.30, -2.60, 1.50),
)
"""Rows turn an sRGB difference from `MEAN` into one latent channel of about unit variance: light, warmth, greenness."""


def build_vae() -> AutoencoderKL:
    """A decoder and encoder of 16-fold reduction: (batch, 3, H, W) in -1..1 to and from (batch, 3, H/16, W/16)."""
    vae = AutoencoderKL(
        block_out_channels=CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * len(CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(CHANNELS),
        layers_per_block=1,
        latent_channels=3,
        norm_num_groups=1,
        sample_size=1024,
        scaling_factor=1.0,
        force_upcast=False,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    initialise(vae)
    return vae.eval()


def latent_matrix() -> Tensor:
    """`TO_LATENT` as a (3, 3) tensor."""
    return torch.tensor(TO_LATENT)


def to_latent(rgb: Tensor) -> Tensor:
    """Area-averaged sRGB in 0..1 of shape (batch, 3, h, w) to latents: what the encoder computes from the picture."""
    centred = rgb - torch.tensor(MEAN, dtype=rgb.dtype, device=rgb.device).view(1, 3, 1, 1)
    return torch.einsum("oc,bchw->bohw", latent_matrix().to(rgb), centred)


def balanced_convs(vae: AutoencoderKL) -> Iterator[nn.Conv2d]:
    """The convolutions whose outputs, alone or added up, are normalised later."""
    for part in (vae.encoder, vae.decoder):
        for name, module in part.named_modules():
            if isinstance(module, nn.Conv2d) and name != "conv_out":
                yield module


@torch.no_grad()
def balance(vae: AutoencoderKL) -> None:
    """Puts back the constants that make the normalisation inert. Call after every optimiser step."""
    residual_ends = {id(m.conv2) for m in vae.modules() if hasattr(m, "conv2")}
    latent_inputs = {id(vae.encoder.conv_in), id(vae.decoder.conv_in)}
    for conv in balanced_convs(vae):
        weight, bias = conv.weight, conv.bias
        assert bias is not None  # noqa: S101 - every convolution of AutoencoderKL has one
        if id(conv) not in latent_inputs:
            weight[:, -2:] = 0.0
        weight[-2:] = 0.0
        weight[-RESERVED] = -weight[:-RESERVED].sum(0)
        bias[-RESERVED] = -bias[:-RESERVED].sum()
        # A block ends in shortcut + conv2: the shortcut alone carries the constants.
        ballast = 0.0 if id(conv) in residual_ends else BALLAST
        bias[-2], bias[-1] = ballast, -ballast
    for norm in (m for m in vae.modules() if isinstance(m, nn.GroupNorm)):
        norm.weight[-2:] = 0.0
        norm.bias[-2:] = 0.0


def drop_reserved_gradients(vae: AutoencoderKL) -> None:
    """Removes the gradients of what `balance` sets; inputs of 256 would else drown all others in the gradient norm."""
    for conv in balanced_convs(vae):
        if conv.weight.grad is not None and conv.bias is not None and conv.bias.grad is not None:
            conv.weight.grad[-RESERVED:] = 0.0
            conv.bias.grad[-RESERVED:] = 0.0
            if conv is not vae.decoder.conv_in:
                conv.weight.grad[:, -2:] = 0.0


def trainable(vae: AutoencoderKL) -> list[nn.Parameter]:
    """Weights of the decoder without its normalisations, which stay inert; freezes the rest."""
    vae.requires_grad_(False)
    parameters: list[nn.Parameter] = []
    for module in vae.decoder.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            parameters.extend(module.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


def inert_scale(channels: int) -> float:
    """The standard deviation that the ballast gives a map of so many channels."""
    return BALLAST * math.sqrt(2.0 / channels)


@torch.no_grad()
def initialise(vae: AutoencoderKL) -> None:
    """Sets the encoder to the area average and the decoder to a smooth interpolation plus untrained detail."""
    for norm in (m for m in vae.modules() if isinstance(m, nn.GroupNorm)):
        norm.weight.fill_(inert_scale(norm.num_channels))
        norm.bias.zero_()
    for module in vae.modules():
        if hasattr(module, "conv2") and hasattr(module, "conv1"):
            module.conv2.weight.zero_()
            module.conv2.bias.zero_()
            if module.conv_shortcut is not None:
                _carry(module.conv_shortcut, torch.ones(1, 1), carried=3)
    _initialise_encoder(vae)
    _initialise_decoder(vae)
    balance(vae)


def _carry(conv: nn.Conv2d, kernel: Tensor, carried: int) -> None:
    """Lets the first channels pass through `kernel`; the other rows keep their random weights."""
    conv.weight[:carried] = 0.0
    assert conv.bias is not None  # noqa: S101
    conv.bias[:carried] = 0.0
    for channel in range(carried):
        conv.weight[channel, channel] = kernel


def _initialise_encoder(vae: AutoencoderKL) -> None:
    encoder = vae.encoder
    for conv in balanced_convs(vae):
        if any(conv is m for m in encoder.modules()):
            for parameter in conv.parameters():
                parameter.zero_()
    for module in encoder.modules():
        if getattr(module, "conv_shortcut", None) is not None:
            _carry(module.conv_shortcut, torch.ones(1, 1), carried=3)
    centre = torch.zeros(3, 3)
    centre[1, 1] = 1.0
    _carry(encoder.conv_in, centre, carried=3)
    # The downsampler pads right and bottom only, so these four taps are one block of 2 x 2 pixels.
    block = torch.zeros(3, 3)
    block[:2, :2] = 0.25
    for level in encoder.down_blocks:
        for sampler in level.downsamplers or ():
            _carry(sampler.conv, block, carried=3)
    # silu(a) - silu(-a) = a: the last block makes the mirrored channels that carry a map through the activation.
    mirror = encoder.down_blocks[-1].resnets[-1].conv_shortcut
    _mirror(mirror)
    out = encoder.conv_out
    out.weight.zero_()
    out.bias.zero_()
    out.bias[3:] = LOG_VARIANCE
    matrix = latent_matrix()
    out.weight[:3, :3, 1, 1] = matrix / 2.0
    out.weight[:3, 3:6, 1, 1] = -matrix / 2.0
    # Pictures come as -1..1: (x + 1) / 2 - MEAN.
    out.bias[:3] = matrix @ (0.5 - torch.tensor(MEAN))


def _mirror(conv: nn.Conv2d) -> None:
    """Adds to the three carried channels their negatives as channels 3, 4 and 5."""
    conv.weight[3:6] = -conv.weight[:3]
    assert conv.bias is not None  # noqa: S101
    conv.bias[3:6] = 0.0


def _initialise_decoder(vae: AutoencoderKL) -> None:
    decoder = vae.decoder
    inverse = torch.linalg.inv(latent_matrix())
    decoder.conv_in.weight[:3] = 0.0
    decoder.conv_in.weight[:3, :, 1, 1] = 2.0 * inverse
    decoder.conv_in.bias[:3] = 2.0 * torch.tensor(MEAN) - 1.0
    # Doubling by repetition and then [1 2 1] / 4 is linear interpolation.
    line = torch.tensor([0.25, 0.5, 0.25])
    for level in decoder.up_blocks:
        for sampler in level.upsamplers or ():
            _carry(sampler.conv, torch.outer(line, line), carried=3)
    _mirror(decoder.up_blocks[-2].upsamplers[0].conv)
    last = decoder.up_blocks[-1].resnets[0].conv_shortcut
    if last is not None:
        _mirror(last)
    out = decoder.conv_out
    out.weight.zero_()
    out.bias.zero_()
    for channel in range(3):
        out.weight[channel, channel, 1, 1] = 1.0
        out.weight[channel, 3 + channel, 1, 1] = -1.0
