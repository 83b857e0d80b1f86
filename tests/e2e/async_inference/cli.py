"""`python -m tests.e2e.async_inference.cli` is `python -m stress.cli`."""

from stress.cli import app

__all__ = ["app"]

if __name__ == "__main__":
    app(prog_name="python -m tests.e2e.async_inference.cli")
