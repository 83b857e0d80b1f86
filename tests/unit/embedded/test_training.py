"""The autoencoder's starting weights, and every stage of training at a tiny size."""

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch.nn import functional

from deployments.embedded import MODEL_FOLDER, train_adapter, train_autoencoder, train_denoiser, train_text
from deployments.embedded.architecture import assemble, build_text_encoder, build_unet, save
from deployments.embedded.autoencoder import balance, build_vae, to_latent
from deployments.embedded.checkpoints import Checkpoint
from deployments.embedded.muon import orthogonal
from deployments.embedded.progress import Progress
from deployments.embedded.train import begin

QUIET = Progress("test", every_s=1e9)
SMALL_SIZES = (((64, 64), 1.0),)
DENOISER = train_denoiser.Plan(steps=2, latents=32, sizes=SMALL_SIZES, early_sizes=SMALL_SIZES)


def test_the_directions_of_muon_are_orthogonal() -> None:
    torch.manual_seed(0)
    for shape in ((8, 40), (40, 8)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert 0.6 < float(values.min()) < float(values.max()) < 1.3


@torch.no_grad()
def test_the_encoder_averages_areas() -> None:
    picture = torch.rand(2, 3, 64, 48)
    latents = build_vae().encode(picture * 2.0 - 1.0).latent_dist.sample()
    expected = to_latent(functional.avg_pool2d(picture, 16))
    assert torch.allclose(latents, expected, atol=1e-3)


@torch.no_grad()
def test_a_pixel_depends_on_its_neighbourhood_only() -> None:
    torch.manual_seed(0)
    vae = build_vae()
    for parameter in vae.decoder.parameters():
        if parameter.ndim == 4:
            parameter.add_(torch.randn_like(parameter) * 0.02)
    balance(vae)
    latents = torch.randn(1, 3, 4, 40)
    changed = latents.clone()
    changed[..., -1] += 1.0
    whole, other = vae.decode(latents).sample, vae.decode(changed).sample
    assert torch.allclose(whole[..., :160], other[..., :160], atol=1e-3)
    assert not torch.allclose(whole[..., -16:], other[..., -16:], atol=1e-2)


def test_a_stage_that_was_stopped_ends_with_the_same_weights(tmp_path: Path) -> None:
    def weights(name: str, *lengths: int) -> torch.Tensor:
        plan = train_text.Plan(batch=4)
        for steps in lengths:
            # The learning rate depends on the planned length: an interruption keeps the plan.
            state = Checkpoint(tmp_path / name)
            encoder = train_text.train(plan, state, QUIET, until=steps)
        return torch.cat([parameter.flatten() for parameter in encoder.parameters()])

    assert torch.equal(weights("whole", 4), weights("resumed", 2, 4))


def test_every_stage_runs_and_the_folder_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    decoder_plan = train_autoencoder.Plan(steps=2, batch=1, crop=32)
    vae = train_autoencoder.train(decoder_plan, Checkpoint(tmp_path / "a.pt"), QUIET)
    encoder = train_text.train(train_text.Plan(steps=2, batch=4), Checkpoint(tmp_path / "t.pt"), QUIET)
    unet = train_denoiser.train(DENOISER, encoder, Checkpoint(tmp_path / "d.pt"), QUIET)
    assert {path.suffix for path in tmp_path.iterdir()} == {".pt"}
    save(assemble(vae, unet, encoder), tmp_path / "model")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "model")
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.float32}


def test_training_goes_on_from_a_model_folder(tmp_path: Path) -> None:
    begin(MODEL_FOLDER, tmp_path)
    encoder = build_text_encoder()
    unet = train_denoiser.train(replace(DENOISER, steps=1), encoder, Checkpoint(tmp_path / "denoiser.pt"), QUIET)
    shipped = DiffusionPipeline.from_pretrained(MODEL_FOLDER).unet
    assert float((unet.conv_in.weight - shipped.conv_in.weight).abs().max()) < 0.01


def test_an_adapter_trains_and_is_small(tmp_path: Path) -> None:
    torch.manual_seed(0)
    unet, encoder = build_unet(), build_text_encoder()
    before = unet.conv_in.weight.clone()
    plan = train_adapter.Plan(steps=1, latents=32, sizes=SMALL_SIZES)
    train_adapter.train(plan, "blueprint", unet, encoder, QUIET)
    path = train_adapter.save(unet, "blueprint", tmp_path)
    assert path.stat().st_size < 1_000_000
    assert torch.equal(before, unet.conv_in.base_layer.weight)
