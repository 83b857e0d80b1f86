"""The application builder that serve_config.yaml names: `serve_app.app:build`."""

from ray import serve

from deployments.text_to_image import application_for
from serve_app.ingress import ingress
from serve_app.settings import Settings

# No `from __future__ import annotations` here: Serve validates `args` only if the annotation is a real class.


def build(settings: Settings) -> serve.Application:
    """Return the application: an ingress, and one deployment for each model.

    Serve may call this again at any time, so it starts and writes nothing.
    """
    artifacts = settings.resolved_artifacts_url()
    handles = {
        f"model_{n}": application_for(model, artifacts, settings.device, log_level=settings.log_level)
        for n, model in enumerate(settings.offered_models())
    }
    return ingress.bind(settings, **handles)
