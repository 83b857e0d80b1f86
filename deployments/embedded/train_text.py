"""Teaches the text encoder to read: every position from the end mark on holds the meaning of the whole caption."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from deployments.embedded import captions
from deployments.embedded.architecture import build_text_encoder, build_tokenizer
from deployments.embedded.checkpoints import Checkpoint, randomness, step_seed
from deployments.embedded.meaning import MEANING_WIDTH, choices_of, meaning_of, read
from deployments.embedded.progress import Progress
from deployments.embedded.stage import finite, run_steps
from deployments.embedded.vocabulary import MAX_TOKENS

STAGE = "text"


@dataclass(frozen=True, slots=True)
class Plan:
    """Length and size of the training."""

    steps: int = 4000
    batch: int = 64
    learning_rate: float = 1e-3
    warm_up: int = 100
    seed: int = 1
    save_every_s: float = 120.0


def tokenise(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    """Token ids as the pipeline makes them, (n, 77)."""
    encoded = tokenizer(list(texts), padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    ids: Tensor = encoded["input_ids"]
    return ids


def loss_of(hidden: Tensor, ids: Tensor, meanings: Tensor, end: int) -> Tensor:
    """Squared error against the meaning, (n, MEANING_WIDTH), of every position from the end mark on, mean per caption.

    The positions before it and the entries behind the meaning are free.
    """
    ends = (ids == end).int().argmax(1)
    summary = torch.arange(ids.shape[1])[None, :] >= ends[:, None]
    wrong = (hidden[..., :MEANING_WIDTH] - meanings[:, None, :]).square().sum(-1)
    return (wrong * summary / summary.sum(1, keepdim=True)).sum(1).mean()


@torch.no_grad()
def measure(encoder: CLIPTextModel, count: int = 400, seed: int = 987_654) -> float:
    """Part of new captions of which everything is read right, at the last position."""
    tokenizer, (random, _) = build_tokenizer(), randomness(seed)
    samples = [captions.sample(random) for _ in range(count)]
    hidden = encoder(tokenise(tokenizer, [said.text for _, said in samples]))[0]
    right = sum(read(vector) == choices_of(*sample) for vector, sample in zip(hidden[:, -1], samples, strict=True))
    return right / count


def train(plan: Plan, checkpoint: Checkpoint, progress: Progress, until: int | None = None) -> CLIPTextModel:
    """Trains, or goes on from the checkpoint, to step `until` of the plan, and returns the text encoder."""
    torch.manual_seed(plan.seed)
    tokenizer, encoder = build_tokenizer(), build_text_encoder()
    end = tokenizer.eos_token_id
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=plan.learning_rate, weight_decay=0.01)
    begin = 0
    if (state := checkpoint.load()) is not None:
        encoder.load_state_dict(state["model"])
        if "optimizer" in state:
            optimizer.load_state_dict(state["optimizer"])
        begin = state["step"]

    def take_step(step: int) -> dict[str, float]:
        rate = min(1.0, (step + 1) / plan.warm_up) * (1.0 - 0.95 * step / plan.steps)
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * rate
        random, _ = randomness(step_seed(plan.seed, STAGE, step))
        samples = [captions.sample(random) for _ in range(plan.batch)]
        ids = tokenise(tokenizer, [said.text for _, said in samples])
        meanings = torch.stack([meaning_of(*sample) for sample in samples])
        hidden = encoder(ids)[0]
        loss = loss_of(hidden, ids, meanings, end)
        optimizer.zero_grad(set_to_none=True)
        figures = {"loss": finite(loss, step)}
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        return figures

    run_steps(
        take_step,
        lambda: {"model": encoder.state_dict(), "optimizer": optimizer.state_dict()},
        begin=begin,
        steps=plan.steps,
        until=until,
        checkpoint=checkpoint,
        progress=progress,
        save_every_s=plan.save_every_s,
    )
    return encoder.eval()
