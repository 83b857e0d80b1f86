"""The flags that `run`, `stress` and `soak` share, as one record instead of one signature each."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from stress.checks.session import Asking, Budgets
from stress.kit_settings import (
    DEFAULT_CALLBACK_BASE,
    DEFAULT_SECRET,
    DEFAULT_SERVICE_URL,
    EVERY_ADDRESS,
    KitSettings,
)
from stress.repeating import given_options

_SERVICE = "Service and receiver"
_PICTURE = "What is asked for"
_WAITING = "Patience"
_CHOICE = "Which checks"
_REPORTS = "Reports"

_ASKING = Asking()
_BUDGETS = Budgets()


def _option(*names: str, panel: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **more)


@dataclass(frozen=True)
class Options:
    """The shared flags; None where the environment, or else the stated default, decides."""

    miner_url: Annotated[
        str | None,
        _option(
            "--miner-url",
            panel=_SERVICE,
            metavar="URL",
            help=f"The service to check. \\[ASYNC_MINER_URL, or {DEFAULT_SERVICE_URL}]",
        ),
    ] = None
    callback_base: Annotated[
        str | None,
        _option(
            "--callback-base",
            panel=_SERVICE,
            metavar="URL",
            help=f"The receiver as the service reaches it. \\[ASYNC_CALLBACK_BASE_URL, or {DEFAULT_CALLBACK_BASE}]",
        ),
    ] = None
    callback_secret: Annotated[
        str | None,
        _option(
            "--callback-secret",
            panel=_SERVICE,
            metavar="TEXT",
            help=f"Sent with every job, expected with every callback. \\[ASYNC_CALLBACK_SECRET, or {DEFAULT_SECRET}]",
        ),
    ] = None
    callback_bind_host: Annotated[
        str | None,
        _option(
            "--callback-bind-host",
            panel=_SERVICE,
            metavar="ADDRESS",
            help=f"The address that the receiver binds. \\[ASYNC_CALLBACK_BIND_HOST, or {EVERY_ADDRESS}]",
        ),
    ] = None
    no_auto_callback: Annotated[
        bool,
        _option(
            "--no-auto-callback", panel=_SERVICE, help="Start no receiver: one runs already at the --callback-base."
        ),
    ] = False
    header: Annotated[
        list[str] | None,
        _option(
            "--header",
            panel=_SERVICE,
            metavar="'NAME: VALUE'",
            help="Goes with every request, for instance credentials. Repeatable.",
        ),
    ] = None

    prompt: Annotated[str, _option("--prompt", panel=_PICTURE)] = _ASKING.prompt
    width: Annotated[int, _option("--width", min=1, panel=_PICTURE, help="Pixels.")] = _ASKING.width
    height: Annotated[int, _option("--height", min=1, panel=_PICTURE, help="Pixels.")] = _ASKING.height
    steps: Annotated[int | None, _option("--steps", min=1, panel=_PICTURE, help="Denoising steps. \\[20]")] = None
    seed: Annotated[int, _option("--seed", panel=_PICTURE)] = _ASKING.seed
    lora: Annotated[
        list[str] | None,
        _option(
            "--lora",
            panel=_PICTURE,
            metavar="PATH",
            help="An adapter to switch to, by its lora_path; repeatable. The base model is always among them.",
        ),
    ] = None
    expiry_minutes: Annotated[
        int | None,
        _option(
            "--expiry-minutes",
            min=1,
            panel=_PICTURE,
            help="\\[5; 10 with stress and soak; more where the budgets leave a job more time]",
        ),
    ] = None

    poll_budget: Annotated[
        float,
        _option("--poll-budget", min=1.0, panel=_WAITING, help="Seconds in which a job of any size must be final."),
    ] = _BUDGETS.base_s
    step_budget: Annotated[
        float,
        _option(
            "--step-budget",
            min=0.0,
            panel=_WAITING,
            help="Seconds more for each step of 1024x1024, of the job itself and of those before it.",
        ),
    ] = _BUDGETS.per_megapixel_step_s
    callback_budget: Annotated[
        float, _option("--callback-budget", min=0.1, panel=_WAITING, help="Seconds to wait for a callback.")
    ] = _BUDGETS.callback_s
    poll_interval: Annotated[
        float, _option("--poll-interval", min=0.01, panel=_WAITING, help="Seconds between two polls of a job.")
    ] = _BUDGETS.poll_interval_s
    job_timeout: Annotated[
        float | None,
        _option(
            "--job-timeout",
            min=0.1,
            panel=_WAITING,
            help="The service's own limit for a job, if its operator set one so short that the check job-timeout "
            "can reach it.",
        ),
    ] = None

    only: Annotated[
        list[str] | None, _option("--only", panel=_CHOICE, metavar="CHECK", help="Run this check alone; repeatable.")
    ] = None
    skip: Annotated[
        list[str] | None, _option("--skip", panel=_CHOICE, metavar="CHECK", help="Leave this check out; repeatable.")
    ] = None
    jobs: Annotated[
        int | None,
        _option("--jobs", min=1, panel=_CHOICE, help="Jobs at once in the load checks. \\[STRESS_TEST_CONCURRENT, 10]"),
    ] = None
    quick: Annotated[
        bool, _option("--quick", panel=_CHOICE, help="Few steps and few jobs, unless other flags say how many.")
    ] = False
    list_checks: Annotated[bool, _option("--list", panel=_CHOICE, help="Name the checks, one a line, and end.")] = False

    json_file: Annotated[
        Path | None, _option("--json", panel=_REPORTS, metavar="FILE", dir_okay=False, help="Everything, for programs.")
    ] = None
    junit_file: Annotated[
        Path | None, _option("--junit", panel=_REPORTS, metavar="FILE", dir_okay=False, help="For a build server.")
    ] = None
    html_file: Annotated[
        Path | None,
        _option("--html", panel=_REPORTS, metavar="FILE", dir_okay=False, help="One page to send to an operator."),
    ] = None
    pictures: Annotated[
        Path | None,
        _option("--pictures", panel=_REPORTS, metavar="DIR", file_okay=False, help="Keep every picture here."),
    ] = None
    quiet: Annotated[bool, _option("-q", "--quiet", panel=_REPORTS, help="No live progress, no table.")] = False

    given: Mapping[str, tuple[str, ...]] | None = None
    """No flag: the words of those that were given, by their names here."""

    @property
    def quick_steps(self) -> int:
        """Denoising steps to ask for: as told, else few if quick, else the specified number."""
        return self.steps or (4 if self.quick else _ASKING.steps)

    def asking(self, *, expiry_minutes: float) -> Asking:
        """Return what to draw; `expiry_minutes` is the command's own default."""
        minutes = expiry_minutes if self.expiry_minutes is None else self.expiry_minutes
        fixed = self.expiry_minutes is not None
        return Asking(self.prompt, self.width, self.height, self.quick_steps, self.seed, minutes, fixed)

    def budgets(self) -> Budgets:
        """Return how long to wait."""
        return Budgets(
            base_s=self.poll_budget,
            per_megapixel_step_s=self.step_budget,
            callback_s=self.callback_budget,
            poll_interval_s=self.poll_interval,
        )

    def settings(self) -> KitSettings:
        """Return the environment's settings with the flags in front. Raises pydantic's `ValidationError`."""
        flags: dict[str, Any] = {
            "ASYNC_MINER_URL": self.miner_url,
            "ASYNC_CALLBACK_BASE_URL": self.callback_base,
            "ASYNC_CALLBACK_SECRET": self.callback_secret,
            "ASYNC_CALLBACK_BIND_HOST": self.callback_bind_host,
        }
        return KitSettings(**{name: value for name, value in flags.items() if value is not None})


def takes_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, whose first argument is `Options`, these flags beside its own."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    shared = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.type)
        for one in fields(Options)
        if one.name != "given"
    ]

    @functools.wraps(command)
    def called(context: typer.Context, **values: Any) -> None:
        mine = {one.name: values.pop(one.name) for one in own}
        command(Options(**values, given=given_options(context)), **mine)

    keyword_only = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    every = [context, *shared, *keyword_only]
    called.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in every}
    return called
