"""The receiver's HTTP face."""

from fastapi import FastAPI

from stress.receiver import callbacks, control, dashboard
from stress.receiver.desk import Desk


def create_app(desk: Desk, max_body_bytes: int) -> FastAPI:
    """Build the app: `POST /callback`, what was received, the page at `/`, and the control of misbehaviour."""
    app = FastAPI(
        title="Darkroom callback receiver",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        max_body_size=max_body_bytes,
    )
    app.state.desk = desk
    for router in (callbacks.receiving, callbacks.listing, dashboard.router, control.router):
        app.include_router(router)
    return app
