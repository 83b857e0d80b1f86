from faulty_service import FaultyService, Flaw

from stress.submit_rate import bare_server, measure


async def test_every_submit_to_the_bare_server_is_accepted() -> None:
    with bare_server() as url:
        rate = await measure(url, submits=200, at_once=8)

    assert (rate.accepted, rate.refused) == (200, 0)
    assert rate.per_s == 200 / rate.seconds
    assert rate.cpu_seconds > 0
    assert "submits/s" in str(rate)


async def test_refused_submits_are_counted_apart() -> None:
    async with FaultyService(Flaw.ERROR_ON_SUBMIT) as service:
        rate = await measure(service.url, submits=20, at_once=4)

    assert (rate.accepted, rate.refused) == (0, 20)
    assert "20 refused" in str(rate)
