"""The hands: rendering. This room knows nothing of HTTP, jobs or callbacks."""
