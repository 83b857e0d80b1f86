"""The application builder that serve_config.yaml names: `serve_app.app:build`."""

import os

import sqlalchemy as sa
from ray import serve

from deployments.text_to_image import application_for
from serve_app.ingress import ingress
from serve_app.settings import Settings

# No `from __future__ import annotations` here: Serve validates `args` only if the annotation is a real class.


def build(settings: Settings) -> serve.Application:
    """Return the application: an ingress, and one deployment for each model.

    Serve may call this again at any time, so it starts and writes nothing.
    Raises `ValueError` for a password in `args`.
    """
    _refuse_password_in_args(settings)
    artifacts = settings.resolved_artifacts_url()
    handles = {
        f"model_{n}": application_for(model, artifacts, settings.device, log_level=settings.log_level)
        for n, model in enumerate(settings.offered_models())
    }
    return ingress.bind(settings, **handles)


def _refuse_password_in_args(settings: Settings) -> None:
    # Ray's dashboard shows `args` to whoever opens it.
    if settings.store_url and sa.make_url(settings.store_url).password and "DARKROOM_STORE_URL" not in os.environ:
        raise ValueError(
            "store_url holds a password, and Ray's dashboard shows it. Put the URL into the environment variable "
            "DARKROOM_STORE_URL of the Ray nodes, or leave the password to PGPASSFILE."
        )
