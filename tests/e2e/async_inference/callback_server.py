"""The receiver of `stress.callback_server`; as a module it runs it on 0.0.0.0:8092."""

from stress.callback_server import CallbackServer, main
from stress.receiver.entries import CallbackEntry

__all__ = ["CallbackEntry", "CallbackServer", "main"]

if __name__ == "__main__":
    raise SystemExit(main())
