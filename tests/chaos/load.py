"""Jobs with callbacks, submitted all the time; whoever watches them notes what a poller would see."""

import random
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from uuid import uuid4

import httpx

from tests.chaos.work import Work
from tests.chaos.world import SECRET, World

FINAL = {"completed", "failed", "timeout"}
GIVE_UP_S = 180.0
"""A submission that is not accepted after so long ends the run: nothing that is done takes the service so long."""
EXPIRING_SHARE = 0.2
PAUSE_S = 0.2


@dataclass(frozen=True, slots=True)
class Accepted:
    """A job that the service has promised. `expiry` is in seconds since 1970, `right` the SHA-256 of its picture."""

    job_id: str
    accepted_at: float
    right: str
    expiry: float | None = None
    calls_back: bool = True


@dataclass(frozen=True, slots=True)
class Seen:
    """A final state, as a poller saw it."""

    status: str
    sha256: str | None
    error_code: str | None


@dataclass
class Journal:
    """What load and watchers write down."""

    accepted: list[Accepted] = field(default_factory=list)
    finals: dict[str, set[Seen]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def saw(self, job_id: str, seen: Seen) -> None:
        """Note a final state; a job must not have two."""
        with self.lock:
            self.finals.setdefault(job_id, set()).add(seen)


def references(http: httpx.Client, work: Work) -> dict[str, str]:
    """Render every picture alone, undisturbed. Returns their SHA-256 by prompt."""
    right = {}
    for prompt in work.prompts():
        job_id = http.post("/inference", json=work.asked(prompt)).raise_for_status().json()["job_id"]
        status = http.get(f"/inference/status/{job_id}", params={"wait": 30}).json()
        assert status["status"] == "completed", status
        right[prompt] = sha256(http.get(f"/inference/result/{job_id}").content).hexdigest()
    assert len(set(right.values())) == len(right)
    return right


def submit(http: httpx.Client, body: dict[str, Any]) -> str:
    """Submit until it is accepted, always under the same key. Returns the job's id."""
    deadline, key = time.monotonic() + GIVE_UP_S, uuid4().hex
    while True:
        with suppress(httpx.TransportError, ValueError):
            answer = http.post("/inference", json=body, headers={"Idempotency-Key": key})
            if answer.status_code == 200:
                return str(answer.json()["job_id"])
            # Serve's proxy says 404 in words of its own as long as it has not heard of the application.
            if answer.status_code < 429 and "error_code" in answer.json():
                raise RuntimeError(f"A right submission was refused: {answer.status_code} {answer.text}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"Nothing was accepted for {GIVE_UP_S:g} s.")
        time.sleep(PAUSE_S)


def seen(status: dict[str, Any]) -> Seen:
    """Return what of a final status must never change."""
    return Seen(status["status"], status.get("sha256"), status.get("error_code"))


class Load:
    """Threads that submit the work together, and one that watches. Ends with the block."""

    def __init__(self, world: World, right: dict[str, str], journal: Journal, *, work: Work, seed: int) -> None:
        self._world, self._right, self._journal, self._work = world, right, journal, work
        self._pause_s = SUBMITTERS / work.rate
        self._seed = seed
        self._stop = threading.Event()
        self._failures: list[BaseException] = []
        submitters = [lambda n=n: self._submit_all_the_time(n) for n in range(SUBMITTERS)]
        self._threads = [threading.Thread(target=self._guarded, args=(one,)) for one in (*submitters, self._watch)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self._failures:
            raise self._failures[0]

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            self._failures.append(error)

    def _submit_all_the_time(self, number: int) -> None:
        choose = random.Random(f"{self._seed} {number}")  # noqa: S311 - to be repeated
        callback = {"callback_url": self._world.receiver.callback_url, "callback_secret": SECRET}
        with self._world.http() as http:
            while not self._stop.wait(self._pause_s):
                prompt = choose.choice(sorted(self._right))
                calls_back = choose.random() < self._work.calling_back
                body = self._work.asked(prompt) | (callback if calls_back else {})
                expiry = time.time() + choose.uniform(1, 30) if choose.random() < EXPIRING_SHARE else None
                if expiry is not None:
                    body["expiry"] = datetime.fromtimestamp(expiry, UTC).isoformat()
                job_id = submit(http, body)
                accepted = Accepted(job_id, time.time(), self._right[prompt], expiry, calls_back)
                with self._journal.lock:
                    self._journal.accepted.append(accepted)

    def _watch(self) -> None:
        choose = random.Random(f"{self._seed} watch")  # noqa: S311 - to be repeated
        with self._world.http() as http:
            while not self._stop.wait(0.1):
                with self._journal.lock:
                    recent = self._journal.accepted[-200:]
                if not recent:
                    continue
                job_id = choose.choice(recent).job_id
                with suppress(httpx.TransportError, ValueError, KeyError):
                    status = http.get(f"/inference/status/{job_id}").json()
                    if status["status"] in FINAL:
                        self._journal.saw(job_id, seen(status))


SUBMITTERS = 6
