"""The HTTP API: one router per subject, put together here."""

from importlib.metadata import version

from fastapi import FastAPI

from serve_app.api import errors, health, inference, jobs
from serve_app.api.limits import BodyLimit
from serve_app.service import Service


def create_api(service: Service) -> FastAPI:
    """Return the ASGI application of one ingress replica."""
    app = FastAPI(
        title="Darkroom", version=version("darkroom"), description="Text-to-image jobs, rendered on Ray Serve."
    )
    errors.install(app)
    app.add_middleware(BodyLimit)
    for router in (inference.router, jobs.router, health.router):
        # Not `include_router`: for every request it would match and enter a router inside the router.
        app.router.routes.extend(router(service).routes)
    return app
