"""What a callback consists of, read as receivers read it."""

from dataclasses import replace
from email import message_from_bytes, policy
from email.message import EmailMessage

import pytest

from callback.delivery_rows import Parcel
from callback.sender import Message, compose
from callback.signing import Signer, new_private_key

SIGNER = Signer(new_private_key())
SENT_AT = 1_900_000_000.0
FAILED = Parcel(
    key="key",
    owner="anyone",
    job_id="job-1",
    webhook_id="msg_key",
    receiver="127.0.0.1:80",
    attempt=2,
    attempts_before=0,
    url="http://127.0.0.1/",
    secret=None,
    signing_secret=None,
    image_url="http://127.0.0.1/images/job-1.png",
    expiry=None,
    give_up_at=1e12,
    payload_status="failed",
    finished_at=SENT_AT,
    error="It broke.",
    picture_key=None,
    picture_sha256=None,
    picture_size_bytes=None,
    picture_width=None,
    picture_height=None,
)
COMPLETED = replace(FAILED, payload_status="completed", error=None)


def parts_of(message: Message) -> dict[str, EmailMessage]:
    head = f"Content-Type: {message.headers['Content-Type']}\r\nMIME-Version: 1.0\r\n\r\n".encode()
    form = message_from_bytes(head + message.body, policy=policy.HTTP)
    assert form.get_content_type() == "multipart/form-data"
    return {str(part.get_param("name", header="Content-Disposition")): part for part in form.iter_parts()}


def text_of(part: EmailMessage) -> str:
    content = part.get_payload(decode=True)
    assert isinstance(content, bytes)
    return content.decode()


@pytest.mark.parametrize("error", ["It broke.", 'Ünï "quoted" 50 % \N{SNOWMAN}', "two\nlines; name=x"])
def test_a_failure_is_a_form_without_a_picture(error: str) -> None:
    parts = parts_of(compose(replace(FAILED, error=error), None, SIGNER, SENT_AT))

    assert list(parts) == ["job_id", "status", "completed_at", "error"]
    assert [text_of(parts[name]) for name in ("job_id", "status", "error")] == ["job-1", "failed", error]
    assert {part.get_content_type() for part in parts.values()} == {"text/plain"}
    assert {part.get_content_charset() for part in parts.values()} == {"utf-8"}


def test_a_picture_is_a_file_with_its_address_beside_it() -> None:
    image = bytes(range(256)) * 4

    parts = parts_of(compose(COMPLETED, image, SIGNER, SENT_AT))

    assert list(parts) == ["job_id", "status", "completed_at", "image", "image_url"]
    assert parts["image"].get_payload(decode=True) == image
    assert (parts["image"].get_filename(), parts["image"].get_content_type()) == ("job-1.png", "image/png")
    assert text_of(parts["image_url"]) == COMPLETED.image_url


def test_what_goes_before_the_body_names_the_attempt_and_its_secret_which_no_log_gets() -> None:
    message = compose(replace(FAILED, secret="s3cret"), None, SIGNER, SENT_AT)

    assert message.headers["X-Callback-Secret"] == "s3cret"
    assert "s3cret" not in repr(message)
    assert (message.headers["webhook-id"], message.headers["webhook-attempt"]) == ("msg_key", "2")
    assert message.headers["webhook-timestamp"] == str(int(SENT_AT))
    assert message.headers["webhook-signature"] == SIGNER.sign("msg_key", int(SENT_AT), message.body)
