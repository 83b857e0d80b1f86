import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sent_callbacks import post, request, send

from stress.callback_server import CallbackServer
from stress.receiver.faults import FaultScript, Misbehaviour


@pytest.fixture
def receiver() -> Iterator[CallbackServer]:
    with CallbackServer() as server:
        yield server


def control(server: CallbackServer, method: str, json: Any = None, **headers: str) -> httpx.Response:
    return httpx.request(method, f"{server.url}/misbehaviour", json=json, headers=headers, trust_env=False)


def test_answer_status_holds_for_the_next_requests_only(receiver: CallbackServer) -> None:
    receiver.misbehave(answer_status=500, times=2, answer_body="no disk")
    receiver.misbehave(answer_status=302, times=1, answer_headers={"Location": "http://127.0.0.1:1/"})
    receiver.misbehave(answer_status=204, times=1)

    answers = [post(receiver, picture=b"x" * 300_000) for _ in range(5)]

    assert [answer.status_code for answer in answers] == [500, 500, 302, 204, 200]
    assert answers[0].text == "no disk"
    assert answers[2].headers["location"] == "http://127.0.0.1:1/"
    entries = receiver.entries_for("job-1")
    assert [entry.answered_status for entry in entries] == [500, 500, 302, 204, 200]
    assert [entry.was_accepted for entry in entries] == [False, False, False, True, True]


def test_a_dropped_connection_gives_no_answer_and_is_recorded(receiver: CallbackServer) -> None:
    receiver.misbehave(drop_connection=True, times=1)

    with pytest.raises(httpx.TransportError):
        post(receiver)
    assert post(receiver).status_code == 200

    assert [entry.answered_status for entry in receiver.entries_for("job-1")] == [None, 200]


def test_behave_ends_a_running_delay(receiver: CallbackServer) -> None:
    receiver.misbehave(delay_s=3600)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, receiver)
        receiver.wait_for("job-1", timeout_s=10)
        assert not answer.done()
        receiver.behave()
        assert answer.result(10).status_code == 200
    assert post(receiver).status_code == 200


def test_a_delay_holds_the_answer_back(receiver: CallbackServer) -> None:
    receiver.misbehave(delay_s=0.2, times=1)
    asked_at = time.monotonic()

    assert post(receiver).status_code == 200

    assert time.monotonic() - asked_at >= 0.2


def test_stop_does_not_wait_for_a_delay() -> None:
    with ThreadPoolExecutor(1) as pool:
        with CallbackServer() as server:
            server.misbehave(delay_s=3600)
            answer = pool.submit(post, server)
            server.wait_for("job-1", timeout_s=10)
        assert answer.result(10).status_code == 200


@pytest.mark.parametrize(
    "wrong",
    [
        {"times": 0},
        {"answer_status": 100},
        {"drop_connection": True, "answer_status": 500},
        {"drop_connection": True, "redirect_to": "http://127.0.0.1:1/"},
        {"answer_status": 204, "drip_s": 1.0},
        {"answer_headers": {"X-Bad": "a\r\nb"}},
        {"answer_headers": {"bad name": "a"}},
        {"answer_headers": {"Content-Length": "5"}},
        {"answer_status": 503, "delay_s": 3601},
    ],
)
def test_a_misbehaviour_that_cannot_be_is_refused(receiver: CallbackServer, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Pass|less than or equal"):
        receiver.misbehave(**wrong)
    assert control(receiver, "PUT", wrong).status_code == 422
    assert control(receiver, "GET").json() == []
    assert post(receiver).status_code == 200


def test_a_redirect_and_a_time_to_wait_are_sent_as_headers(receiver: CallbackServer) -> None:
    receiver.misbehave(redirect_to="http://127.0.0.1:1/", times=1)
    receiver.misbehave(answer_status=503, retry_after_s=7, times=1)

    redirect, busy = post(receiver), post(receiver)

    assert (redirect.status_code, redirect.headers["location"]) == (307, "http://127.0.0.1:1/")
    assert (busy.status_code, busy.headers["retry-after"]) == (503, "7")
    assert [entry.answered_status for entry in receiver.entries()] == [307, 503]


def test_a_slow_body_comes_after_its_head_in_small_parts(receiver: CallbackServer) -> None:
    receiver.misbehave(answer_status=200, answer_body="0123456789", drip_s=0.5, times=1)
    made = request(receiver.callback_url)
    with (
        httpx.Client(trust_env=False) as client,
        client.stream("POST", made.url, content=made.content, headers=made.headers) as answer,
    ):
        head_at = time.monotonic()
        parts = list(answer.iter_raw())
        took_s = time.monotonic() - head_at

    assert answer.status_code == 200
    assert answer.headers["content-length"] == "10"
    assert b"".join(parts) == b"0123456789"
    assert len(parts) > 1
    assert took_s >= 0.25


def test_behave_sends_the_rest_of_a_slow_body_at_once(receiver: CallbackServer) -> None:
    receiver.misbehave(drip_s=3600)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, receiver)
        receiver.wait_for("job-1", timeout_s=30)
        assert not answer.done()
        receiver.behave()
        assert answer.result(30).json()["status"] == "success"


async def test_a_delay_that_begins_after_behave_was_called_is_over_at_once() -> None:
    script = FaultScript()
    script.add(Misbehaviour(delay_s=3600))
    turn = script.take("job-1")
    script.clear()

    assert await script.delay(turn, 3600) is False


def test_a_misbehaviour_can_be_for_one_job_only(receiver: CallbackServer) -> None:
    receiver.misbehave(answer_status=500, times=1, job_id="b")
    receiver.misbehave(answer_status=503, times=1)

    answers = [post(receiver, job_id=job_id).status_code for job_id in ("a", "a", "b", "b")]

    assert answers == [503, 200, 500, 200]


def test_misbehaviour_is_set_over_http(receiver: CallbackServer) -> None:
    put = control(receiver, "PUT", {"answer_status": 503, "times": 2, "retry_after_s": 1})
    added = control(receiver, "POST", {"drop_connection": True, "job_id": "b"})
    assert (put.status_code, added.status_code) == (200, 200)
    assert post(receiver).status_code == 503

    left = control(receiver, "GET").json()
    assert [(it["answer_status"], it["times"], it["job_id"]) for it in left] == [(503, 1, None), (None, None, "b")]

    again = control(receiver, "PUT", left)
    assert again.json() == left
    assert control(receiver, "DELETE").json() == []
    assert post(receiver, job_id="b").status_code == 200


def test_an_unknown_word_is_refused_with_its_name(receiver: CallbackServer) -> None:
    answer = control(receiver, "PUT", {"status": 503})

    assert answer.status_code == 422
    assert "status" in answer.text


def test_a_name_that_is_not_of_this_machine_may_not_control(receiver: CallbackServer) -> None:
    refused = control(receiver, "PUT", {"answer_status": 503}, Host="evil.example:8092")

    assert refused.status_code == 403
    assert "control token" in refused.json()["detail"]
    assert post(receiver).status_code == 200


def test_a_control_token_lets_others_in_and_a_wrong_one_nobody() -> None:
    with CallbackServer(control_token="let-me") as server:
        elsewhere = {"Host": "receiver.example"}
        right = control(server, "PUT", {"answer_status": 503}, Authorization="Bearer let-me", **elsewhere)
        wrong = control(server, "DELETE", Authorization="Bearer guess", **elsewhere)
        here = control(server, "DELETE", Authorization="Bearer guess")

    assert (right.status_code, wrong.status_code, here.status_code) == (200, 403, 403)


def test_another_machine_may_not_control() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        own_address = probe.getsockname()[0]
    with CallbackServer("0.0.0.0") as server:  # noqa: S104 - to be reached by an address that is not loopback
        url = f"http://{own_address}:{server.port}"
        refused = httpx.put(f"{url}/misbehaviour", json={"answer_status": 503}, trust_env=False)
        answer = send(request(f"{url}/callback"))

    assert (refused.status_code, answer.status_code) == (403, 200)
