"""Fills a SQLite store with jobs that have ended, each with a picture, a delivered callback and its log."""

from bench.past_jobs import write_past_jobs

NOW = 1_900_000_000.0


def fill(url: str, count: int) -> None:
    """Write `count` finished jobs, a second apart, the last of them at `NOW`."""
    write_past_jobs(url, count, owner="anyone", last=NOW, apart_s=1)


def key_of(n: int) -> str:
    return f"{n:032x}"
