"""What keys, limits and signatures cost: a guarded service and an open one in one instance, measured in turn."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import httpx

from bench.config import Darkroom, Replicas, free_port, serve_config
from bench.connections import Session
from bench.instance import Instance, has_replicas
from bench.jobs import Order
from bench.plan import Plan
from bench.receiver import Receiver, receiver
from bench.records import Protection, Run
from bench.rounds import NOOP
from bench.runs import Asked, run_jobs
from bench.statistics import estimate
from bench.summary import ratios, summarise
from callback.signing import Signer, new_private_key
from serve_app.access.keys import hash_of, new_key, new_signing_secret

if TYPE_CHECKING:
    from bittensor_wallet import Keypair

SYSTEMS = ("open", "keys", "signed", "open+callbacks", "keys+callbacks", "signed+callbacks")
COMPARED = (
    ("keys", "open"),
    ("signed", "open"),
    ("keys+callbacks", "open+callbacks"),
    ("signed+callbacks", "open+callbacks"),
)
"""Which rate is divided by which."""
LIMITS = {
    # All of them count; none is reached, because a refusal would be measured as a failure.
    "max_open_jobs_per_client": 100_000,
    "pixel_steps_per_minute_per_client": 10**15,
    "requests_per_second_per_client": 100_000.0,
}
_CLIENT = "bench"
_CALLBACK_BYTES = 100_000
_SIGNATURES = 50


@dataclass(frozen=True, slots=True)
class _Access:
    """The guarded service's settings, and what a caller needs for them."""

    key: str
    caller: "Keypair"
    service: "Keypair"
    keys_file: Path

    @classmethod
    def make(cls, home: Path) -> "_Access":
        from bittensor_wallet import Keypair  # noqa: PLC0415 - the other benchmarks do without the extra `signed`

        home.mkdir(parents=True, exist_ok=True)
        key, caller, service = new_key(), Keypair.create_from_uri("//Alice"), Keypair.create_from_uri("//Bob")
        keys_file = home / "keys.toml"
        keys_file.write_text(
            f"[clients.{_CLIENT}]\nkeys = ['{hash_of(key)}']\nhotkeys = ['{caller.ss58_address}']\n"
            f"signing_secret = '{new_signing_secret()}'\n"
        )
        return cls(key, caller, service, keys_file)

    def settings(self) -> dict[str, object]:
        return {"keys_file": str(self.keys_file), "hotkey": str(self.service.ss58_address), **LIMITS}

    def sign(self, body: bytes) -> Mapping[str, str]:
        uuid, milliseconds, receiver = str(uuid4()), round(1000 * time.time()), self.service.ss58_address
        text = f"{hashlib.sha256(body).hexdigest()}.{uuid}.{milliseconds}.{receiver}"
        return {
            "Authorization": f"Epistula 0x{self.caller.sign(text.encode()).hex()}",
            "Epistula-Timestamp": str(milliseconds),
            "Epistula-UUID": uuid,
            "Epistula-Signed-By": str(self.caller.ss58_address),
            "Epistula-Signed-For": str(receiver),
        }

    def is_known(self, url: str) -> bool:
        try:
            return httpx.get(f"{url}/jobs", headers=self.sign(b""), timeout=5, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False


def measure_protection(plan: Plan, home: Path, tell: Callable[[str], None]) -> Protection:
    """Measure both services. Raises `BenchError`, `LaunchError`."""
    access, port = _Access.make(home), free_port()
    services = {
        name: Darkroom(home / name, ((NOOP, Replicas()),), name=name, route_prefix=f"/{name}", settings=settings)
        for name, settings in (("open", {}), ("guarded", access.settings()))
    }
    tell("starting")
    with receiver() as callbacks, Instance(serve_config(port, *services.values()), home) as instance:
        urls = {name: f"{instance.url}{service.route_prefix}" for name, service in services.items()}
        instance.wait_until("both services accept jobs", lambda: all(has_replicas(url) for url in urls.values()))
        # A tracker that has just started cannot tell yet which signed requests came before.
        instance.wait_until("signed requests count", lambda: access.is_known(urls["guarded"]))
        return asyncio.run(_Rounds(plan, instance, callbacks, urls, access, tell).measure())


@dataclass(frozen=True, slots=True)
class _Rounds:
    plan: Plan
    instance: Instance
    callbacks: Receiver
    urls: Mapping[str, str]
    access: _Access
    tell: Callable[[str], None]

    async def measure(self) -> Protection:
        plan, runs = self.plan, []
        async with self._sessions() as sessions:
            for system in SYSTEMS:
                self.tell(f"warming up {system}")
                await self._run(sessions, system, 2 * plan.submitters)
            for n in range(plan.protection_pairs):
                turn = n % len(SYSTEMS)
                for system in SYSTEMS[turn:] + SYSTEMS[:turn]:
                    self.tell(f"round {n + 1} of {plan.protection_pairs}, {system}")
                    runs.append(await self._run(sessions, system, plan.protection_jobs))
        return Protection(
            jobs=plan.protection_jobs,
            submitters=plan.submitters,
            pairs=plan.protection_pairs,
            systems=tuple(summarise([run for run in runs if run.system == name]) for name in SYSTEMS),
            ratios=ratios(runs, COMPARED),
            callback_signature_ms=estimate(signature_ms()),
            runs=tuple(runs),
        )

    @asynccontextmanager
    async def _sessions(self) -> AsyncIterator[Mapping[str, Session]]:
        async with AsyncExitStack() as stack:
            yield {
                "open": await stack.enter_async_context(Session()),
                "keys": await stack.enter_async_context(
                    Session(headers={"Authorization": f"Bearer {self.access.key}"})
                ),
                "signed": await stack.enter_async_context(Session(sign=self.access.sign)),
            }

    async def _run(self, sessions: Mapping[str, Session], system: str, count: int) -> Run:
        how, _, calls_back = system.partition("+")
        url = self.urls["open" if how == "open" else "guarded"]
        order = Order(model=NOOP.name, callback_url=self.callbacks.url if calls_back else None)
        asked = Asked(system, url, order, count, self.plan.submitters)
        return await run_jobs(sessions[how], asked, self.instance.processes(), self.callbacks)


def signature_ms() -> list[float]:
    """Return how long signatures of a callback as large as the noop engine's take, in milliseconds.

    Each callback has one, with or without keys: no setting leaves it out, so that no run without it can be measured.
    """
    signer, body, taken = Signer(new_private_key()), bytes(_CALLBACK_BYTES), []
    for _ in range(_SIGNATURES):
        began = time.perf_counter()
        signer.sign(uuid4().hex, round(time.time()), body)
        taken.append(1000 * (time.perf_counter() - began))
    return taken
