"""What can go wrong while measuring."""


class BenchError(Exception):
    """A figure could not be measured, or would not mean what it says; the message says why."""
