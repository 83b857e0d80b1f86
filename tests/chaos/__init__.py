"""Kills and stops every kind of process of a running Darkroom under load, and audits what became of accepted jobs."""
