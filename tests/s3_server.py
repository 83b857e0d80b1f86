"""An S3 server of the tests' own, on loopback."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
from moto.server import ThreadedMotoServer

from tests.apps import free_port


@contextmanager
def running_s3(bucket: str) -> Iterator[dict[str, str]]:
    """Run a server with an empty bucket. Yields the environment of processes that are to use it."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_port(), verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url, key, region = f"http://{host}:{port}", "testing", "us-east-1"
    try:
        client = boto3.client(
            "s3", endpoint_url=url, aws_access_key_id=key, aws_secret_access_key=key, region_name=region
        )
        client.create_bucket(Bucket=bucket)
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": key,
            "AWS_DEFAULT_REGION": region,
        }
    finally:
        server.stop()
