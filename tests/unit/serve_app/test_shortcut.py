"""Routes with a short way for their plainest requests."""

from typing import Annotated

import httpx
import pytest
from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response

from serve_app.api.shortcut import with_shortcut


async def shortcut(request: Request) -> Response | None:
    match request.path_params["name"]:
        case "plain":
            return Response()
        case "refused":
            raise HTTPException(409)
    return None


async def general(name: str, count: Annotated[int, Query(ge=1)] = 1) -> str:
    return f"{name} {count}"


def api() -> FastAPI:
    routes = APIRouter()
    routes.add_api_route("/{name}", general, route_class_override=with_shortcut(shortcut))
    app = FastAPI()
    app.include_router(routes)
    return app


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/plain", 200, b""),
        ("/refused", 409, b'{"detail":"Conflict"}'),
        ("/other", 200, b'"other 1"'),
        ("/other?count=2", 200, b'"other 2"'),
        ("/other?count=0", 422, None),
    ],
)
async def test_what_the_short_way_does_not_answer_goes_the_general_way(
    path: str, status: int, body: bytes | None
) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api()), base_url="http://service") as client:
        answer = await client.get(path)
    assert answer.status_code == status
    assert body is None or answer.content == body


def test_the_document_is_that_of_the_general_way() -> None:
    (parameters,) = (get["get"]["parameters"] for get in api().openapi()["paths"].values())
    assert [parameter["name"] for parameter in parameters] == ["name", "count"]
