"""Logs and metrics: the one set-up that every room of Darkroom shares."""
