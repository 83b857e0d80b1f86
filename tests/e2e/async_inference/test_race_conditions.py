"""Many jobs at once: no picture may be partial, missing, late, stale or another job's, and each has one callback."""

import pytest

from stress.checks.interference import check_interference
from stress.checks.load import check_rapid_concurrent, check_rapid_sequential
from stress.checks.references import References
from stress.checks.session import Session
from stress.kit_settings import KitSettings
from tests.e2e.async_inference.conftest import Amounts, demand_passed

pytestmark = [pytest.mark.serve, pytest.mark.e2e, pytest.mark.slow]


async def test_rapid_concurrent_inference(session: Session, amounts: Amounts, references: References) -> None:
    demand_passed(await check_rapid_concurrent(session, amounts.concurrent, references=references))


async def test_rapid_sequential_different_loras(session: Session, amounts: Amounts, references: References) -> None:
    demand_passed(await check_rapid_sequential(session, amounts.sequential, references=references))


async def test_training_interference(
    session: Session, settings: KitSettings, amounts: Amounts, references: References
) -> None:
    """Adapters are loaded, and jobs cancelled, while a long job runs; the name is that of the check's forerunner."""
    if not settings.enable_training:
        pytest.skip("ENABLE_TRAINING is false.")
    demand_passed(await check_interference(session, amounts.beside, references=references, steps=amounts.long_steps))
