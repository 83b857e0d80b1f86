"""Pictures in an object store: a real S3 server on loopback, spoken to as any other."""

from collections.abc import Iterator

import boto3
import httpx
import numpy as np
import pytest
from fsspec.asyn import AsyncFileSystem

from deployments.artifacts import ArtifactStore
from deployments.errors import ArtifactCorrupt, ArtifactMissing, ArtifactUnwritable
from deployments.png import encode_png
from tests.s3_server import running_s3

KEY = "ab/job/1.png"
PNG = encode_png(np.arange(64 * 80 * 3, dtype=np.uint32).astype(np.uint8).reshape(64, 80, 3))
OTHER = encode_png(np.zeros((64, 64, 3), np.uint8))
BUCKET = "pictures"


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with running_s3(BUCKET) as environment:
        yield environment


@pytest.fixture
def s3(server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[ArtifactStore]:
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    AsyncFileSystem.clear_instance_cache()
    yield ArtifactStore(f"s3://{BUCKET}/darkroom")
    AsyncFileSystem.clear_instance_cache()


def test_a_picture_is_published_read_replaced_and_deleted(s3: ArtifactStore) -> None:
    ref = s3.publish(KEY, PNG, 80, 64)
    assert s3.read(ref) == PNG
    replaced = s3.publish(KEY, OTHER, 64, 64)
    assert s3.read(replaced) == OTHER
    with pytest.raises(ArtifactCorrupt):
        s3.read(ref)
    s3.delete(KEY)
    s3.delete(KEY)
    with pytest.raises(ArtifactMissing):
        s3.read(replaced)


def test_the_object_lies_under_its_key_and_is_the_picture(s3: ArtifactStore) -> None:
    s3.publish(KEY, PNG, 80, 64)
    found = boto3.client("s3").get_object(Bucket=BUCKET, Key=f"darkroom/{KEY}")["Body"].read()
    assert found == PNG


def test_a_link_serves_the_picture_without_credentials(s3: ArtifactStore) -> None:
    s3.publish(KEY, PNG, 80, 64)
    link = s3.link(KEY, 60)
    assert "Expires" in link
    assert httpx.get(link, trust_env=False).content == PNG


def test_a_bucket_that_is_not_there_is_said_in_a_sentence(s3: ArtifactStore) -> None:
    with pytest.raises(ArtifactUnwritable, match="could not be stored") as refused:
        ArtifactStore("s3://no-such-bucket/darkroom").publish(KEY, PNG, 80, 64)
    assert "no-such-bucket" not in str(refused.value)
