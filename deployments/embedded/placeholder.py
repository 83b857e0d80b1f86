"""Writes the embedded model untrained: same parts, same speed, same folder, pictures of coloured blobs.

`python -m deployments.embedded.placeholder [--output FOLDER]`
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

from deployments.embedded.architecture import (
    assemble,
    build_text_encoder,
    build_unet,
    save,
)
from deployments.embedded.autoencoder import build_vae

SEED = 3
MODEL_FOLDER = Path(__file__).parent / "model"


def main(
    output: Annotated[Path, typer.Option(help="Folder to write; files in it are replaced.")] = MODEL_FOLDER,
) -> None:
    """Write an untrained model folder; the same files on every run."""
    torch.manual_seed(SEED)
    save(assemble(build_vae(), build_unet(), build_text_encoder()), output)


if __name__ == "__main__":
    typer.run(main)
