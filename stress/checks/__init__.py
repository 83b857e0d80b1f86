"""The checks: what a service promised, tried over HTTP."""
