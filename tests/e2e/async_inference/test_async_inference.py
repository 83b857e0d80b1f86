"""One job as a validator submits it: every word of the protocol on the way to its callback."""

from datetime import UTC, datetime, timedelta

import pytest

from stress.checks.protocol import check_protocol
from stress.checks.session import Inbox, Session
from stress.kit_settings import KitSettings
from stress.wire import InferenceRequest
from tests.e2e.async_inference.conftest import Service, demand_passed

pytestmark = [pytest.mark.serve, pytest.mark.e2e]


async def test_async_inference_callback(
    session: Session, inbox: Inbox, settings: KitSettings, service: Service
) -> None:
    asking = session.asking
    answer = await session.client.submit(
        InferenceRequest(
            prompt=asking.prompt,
            width=asking.width,
            height=asking.height,
            num_inference_steps=asking.steps,
            seed=asking.seed,
            callback_url=inbox.callback_url,
            callback_secret=settings.callback_secret,
            expiry=datetime.now(UTC) + timedelta(minutes=asking.expiry_minutes),
        ),
        # The service chooses the id, and an older one does not know the Idempotency-Key.
        repeat=False,
    )
    assert answer.job_id
    budget_s = session.budgets.job_s(asking.width, asking.height, asking.steps)
    status = await session.client.wait(answer.job_id, timeout_s=budget_s)
    assert status.status == "completed", status.error
    assert status.callback is not None
    assert status.callback.status == "delivered", status.callback.error
    assert status.callback.status_code is not None
    assert status.callback.status_code < 400
    assert status.callback.payload_status == "completed"

    entries = await inbox.wait_for(answer.job_id, timeout_s=session.budgets.callback_s)
    assert len(entries) == 1
    entry = entries[0]
    assert (entry.job_id, entry.status) == (answer.job_id, "completed")
    assert entry.provided_secret == settings.callback_secret
    assert not entry.error
    assert entry.has_image
    assert entry.saved_path


async def test_every_promise_of_the_protocol_is_kept(session: Session) -> None:
    demand_passed(await check_protocol(session))
