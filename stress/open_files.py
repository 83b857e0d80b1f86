"""How many connections this process may have open at once."""

try:
    import resource
except ImportError:  # Windows, which has no such limit
    resource = None  # type: ignore[assignment]

WANTED = 65_536
"""Each connection to the service, each callback that comes in and each waiting poll takes one."""


def allow_many_connections() -> None:
    """Raise the soft limit of open files towards the hard one; shells begin with 1,024 or fewer.

    Without it some hundred jobs at once fail for want of sockets here, and the service would be blamed.
    """
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    # macOS says "unlimited" and has a limit of its own below.
    while resource.RLIM_INFINITY != soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError):
            wanted //= 2
        else:
            return
