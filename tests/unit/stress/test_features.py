"""What a service says that it can, and what is made of a service that does not say."""

from pathlib import Path

import pytest
from fastapi import Response
from fastapi.responses import JSONResponse
from kit_sessions import session_with
from scripted_service import ScriptedService

from stress.checks.features import Features, features_of
from stress.errors import ServiceError, ServiceFailedError

ROOT = "/"
COMPLETE = JSONResponse(
    {
        "name": "scripted",
        "version": "1",
        "endpoints": ["DELETE /inference/{job_id}", "POST /inference/{job_id}/redeliver"],
    }
)


async def asked(tmp_path: Path, *answers: Response) -> Features:
    service = ScriptedService()
    service.answers[ROOT] = list(answers)
    async with session_with(service.server, tmp_path) as session:
        return await features_of(session)


async def test_a_route_is_offered_where_it_is_listed(tmp_path: Path) -> None:
    assert (await asked(tmp_path, COMPLETE)).complete


@pytest.mark.parametrize("status", [404, 501])
async def test_a_service_without_a_root_offers_the_first_form(tmp_path: Path, status: int) -> None:
    assert await asked(tmp_path, Response(status_code=status)) == Features(cancel=False, redeliver=False)


async def test_a_busy_service_is_asked_again(tmp_path: Path) -> None:
    assert (await asked(tmp_path, Response(status_code=503, headers={"Retry-After": "0"}), COMPLETE)).complete


async def test_a_service_that_breaks_at_its_root_is_not_taken_for_one_that_offers_less(tmp_path: Path) -> None:
    with pytest.raises(ServiceFailedError):
        await asked(tmp_path, *[Response(status_code=500)] * 10)


async def test_nor_is_one_that_does_not_answer(tmp_path: Path) -> None:
    service = ScriptedService()
    async with session_with(service.server, tmp_path) as session:
        service.cuts = 100
        with pytest.raises(ServiceError, match="no answer"):
            await features_of(session)
