"""The client of `stress.client`."""

from stress.client import AsyncDarkroomClient, DarkroomClient
from stress.wire import InferenceRequest, JobStatus, SubmitAnswer

__all__ = ["AsyncDarkroomClient", "DarkroomClient", "InferenceRequest", "JobStatus", "SubmitAnswer"]
