"""Figures over the jobs of a check."""

from collections.abc import Iterable, Sequence

import numpy as np

from stress.checks.outcome import JobTrace


def latencies(traces: Sequence[JobTrace]) -> dict[str, float]:
    """Return how many jobs there were, and p50 and p99 of the times of the accepted ones.

    `submit` is the submit call alone; `final` and `callback` run from the submit to the final status as a poller saw
    it, and to the callback's arrival by the receiver's clock.
    """
    accepted = [trace for trace in traces if trace.accepted]
    figures = {"jobs": float(len(traces)), "jobs_accepted": float(len(accepted))}
    figures |= _percentiles("submit", "ms", (1000 * trace.submit_took_s for trace in accepted))
    figures |= _percentiles(
        "final", "s", (trace.final_s - trace.submitted_s for trace in accepted if trace.final_s is not None)
    )
    figures |= _percentiles(
        "callback", "s", (trace.callback_s - trace.submitted_s for trace in accepted if trace.callback_s is not None)
    )
    return figures


def _percentiles(name: str, unit: str, values: Iterable[float]) -> dict[str, float]:
    known = list(values)
    if not known:
        return {}
    p50, p99 = np.percentile(known, [50, 99])
    return {f"{name}_p50_{unit}": round(float(p50), 4), f"{name}_p99_{unit}": round(float(p99), 4)}
