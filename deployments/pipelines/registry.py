"""The families, and which one a pipeline class belongs to. A new family is a module here and a line below."""

from deployments.pipelines.base import Family
from deployments.pipelines.flux import Flux
from deployments.pipelines.sdxl import StableDiffusionXL
from deployments.pipelines.stable_diffusion import StableDiffusion

GENERIC = Family()
FAMILIES: dict[str, Family] = {
    family.name: family for family in (StableDiffusion(), StableDiffusionXL(), Flux(), GENERIC)
}


def family_of_class(pipeline_class: str | None) -> Family:
    """Return the family of a pipeline class's name, as `model_index.json` states it; generic if none claims it."""
    for family in FAMILIES.values():
        if pipeline_class in family.pipeline_classes:
            return family
    return GENERIC
