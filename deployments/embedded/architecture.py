"""Builds the untrained parts of the embedded model and writes them as an ordinary diffusers folder.

Everything is a stock class of diffusers, transformers or tokenizers; the folder needs no code of ours to load.
"""

from pathlib import Path

from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from deployments.embedded.vocabulary import END, MAX_TOKENS, PAD, START, UNKNOWN, all_tokens

TEXT_WIDTH = 128
"""Width of a token's vector between text encoder and denoiser."""

LATENT_CHANNELS = 3
REDUCTION = 16
"""Pixels of a picture's side per latent."""

FLOW_SHIFT = 3.0
"""Moves the noise levels of sampling and training towards more noise: neighbouring latents of our pictures repeat
each other, so that a picture's colours are still readable where single latents are mostly noise (Esser et al. 2024,
arXiv:2403.03206, section 5.3.2)."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per known word or comma, `<unknown>` for other words; other punctuation is dropped."""
    ids = {token: index for index, token in enumerate(all_tokens())}
    tokenizer = Tokenizer(models.WordLevel(vocab=ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\p{L}\p{M}']+|\p{N}+|,"), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, ids[START]), (END, ids[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def build_text_encoder() -> CLIPTextModel:
    """A three-layer CLIP text encoder: ids of shape (batch, 77) to vectors of shape (batch, 77, 128)."""
    tokens = all_tokens()
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=TEXT_WIDTH,
        intermediate_size=256,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        hidden_act="gelu",
        pad_token_id=tokens.index(PAD),
        bos_token_id=tokens.index(START),
        eos_token_id=tokens.index(END),
    )
    return CLIPTextModel(config).eval()


def build_unet() -> UNet2DConditionModel:
    """The denoiser: latents of shape (batch, 3, height/16, width/16) to the flow (noise minus picture), same shape.

    The caption enters twice: pooled into the time embedding, which scales and shifts every block, and by
    cross-attention at the coarsest level. `time_cond_proj_dim` makes the pipeline hand over the guidance scale as
    a number instead of running an empty prompt beside each step: half the work per step, and no colours driven out of
    range at high scales (Meng et al. 2023, arXiv:2210.03142).
    """
    unet = UNet2DConditionModel(
        sample_size=64,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(32, 64, 112, 160),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        time_cond_proj_dim=64,
    )
    return unet.eval()


def build_scheduler() -> DPMSolverMultistepScheduler:
    """Second-order solver of the straight path between noise and picture (rectified flow)."""
    return DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=FLOW_SHIFT,
        solver_order=2,
        algorithm_type="dpmsolver++",
        final_sigmas_type="zero",
        steps_offset=1,  # unused with flow sigmas; the pipeline warns about any other value
    )


def assemble(
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
) -> StableDiffusionPipeline:
    """The pipeline of these parts with our tokenizer and scheduler."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=build_tokenizer(),
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )


def save(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Writes the folder: denoiser and autoencoder in float16 for size, the text encoder in float32.

    A plain `from_pretrained` loads all of it as float32: diffusers widens its own models, transformers keeps the type
    of the file.
    """
    half = (pipeline.unet, pipeline.vae)
    for part in half:
        part.half()
    pipeline.save_pretrained(folder, safe_serialization=True)
    for part in half:
        part.float()
