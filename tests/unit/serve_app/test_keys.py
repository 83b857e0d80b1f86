"""The file of API keys: what it may hold, and what happens when it changes or breaks."""

from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from serve_app.access.__main__ import main
from serve_app.access.clients import Scope
from serve_app.access.keys import KeyRing, KeysUnusable, hash_of, new_key, new_signing_secret

HOTKEY = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"


def entry(name: str, *keys: str, scopes: str = '"submit", "read"') -> str:
    hashes = ", ".join(f'"{hash_of(key)}"' for key in keys)
    return f'[clients."{name}"]\nscopes = [{scopes}]\nkeys = [{hashes}]\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def test_each_key_of_a_client_is_the_client_and_no_other_is_anybody(path: Path) -> None:
    old, new, foreign = new_key(), new_key(), new_key()
    path.write_text(entry("a", old, new) + entry("b", foreign, scopes='"read"'))
    ring = KeyRing(path)
    first, second, third = ring.client_of(old), ring.client_of(new), ring.client_of(foreign)
    assert first is not None
    assert first == second
    assert (first.name, first.may(Scope.SUBMIT), first.may(Scope.ADMIN)) == ("a", True, False)
    assert third is not None
    assert (third.name, third.may(Scope.SUBMIT)) == ("b", False)
    assert [ring.client_of(wrong) for wrong in ("", "a", hash_of(old), old + "x", "\udcff")] == [None] * 5


def test_a_client_may_sign_its_requests_and_have_its_callbacks_signed(path: Path) -> None:
    secret = new_signing_secret()
    path.write_text(f'[clients.a]\nhotkeys = ["{HOTKEY}"]\nsigning_secret = "{secret}"\n')
    client = KeyRing(path).client_of_hotkey(HOTKEY)
    assert client is not None
    assert (client.name, client.signing_secret) == ("a", secret)
    assert secret not in repr(client)
    assert KeyRing(path).client_of(HOTKEY) is None


def test_a_key_is_changed_while_the_service_runs(path: Path) -> None:
    old, new = new_key(), new_key()
    path.write_text(entry("a", old))
    ring = KeyRing(path)
    path.write_text(entry("a", old, new))
    ring.look()
    assert ring.client_of(new) == ring.client_of(old) is not None
    path.write_text(entry("a", new))
    ring.look()
    assert ring.client_of(old) is None
    assert ring.client_of(new) is not None


def test_a_file_that_breaks_leaves_the_keys_as_they_were_and_says_so(path: Path) -> None:
    key = new_key()
    path.write_text(entry("a", key))
    ring = KeyRing(path)
    for broken in ("[clients", "", None):
        if broken is None:
            path.unlink()
        else:
            path.write_text(broken)
        ring.look()
        assert ring.client_of(key) is not None
        assert "stay valid" in str(ring.trouble)
    path.write_text(entry("b", key))
    ring.look()
    client = ring.client_of(key)
    assert client is not None
    assert (client.name, ring.trouble) == ("b", None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("[clients", "not valid TOML"),
        ('[clients.a]\nkeys = ["my-secret-key"]', "clients.*.keys.*"),
        ('[clients.a]\nkeys = []\nscopes = ["everything"]', "clients.*.scopes.*"),
        ('[clients."../a"]\nkeys = []', "clients"),
        ("[client.a]\nkeys = []", "wrong at *"),
        ('my-secret-key = "studio"', "wrong at *"),
        ("[clients.a]\nkeys = []", "has no keys"),
        ("", "has no keys"),
        (entry("a", "k") + entry("b", "k"), "a and b have the same key"),
        (entry("a", "k") + f"hotkeys = ['{HOTKEY}']\n[clients.b]\nhotkeys = ['{HOTKEY}']", "a and b have the same key"),
        ('[clients.a]\nhotkeys = ["my-secret-key"]', "clients.*.hotkeys.*"),
        ('[clients.a]\nkeys = []\nsigning_secret = "my-secret-key"', "clients.*.signing_secret"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_a_sentence_and_without_a_secret(
    path: Path, content: str | None, said: str
) -> None:
    if content is not None:
        path.write_text(content)
    with pytest.raises(KeysUnusable) as refused:
        KeyRing(path)
    assert said in str(refused.value)
    assert "my-secret-key" not in str(refused.value)


def test_a_file_that_could_not_be_opened_is_tried_again_when_it_may_be(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = new_key(), new_key()
    path.write_text(entry("a", old))
    ring = KeyRing(path)
    path.write_text(entry("a", new))
    with monkeypatch.context() as refusing:
        refusing.setattr(Path, "read_text", lambda _: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
        ring.look()
    assert ring.client_of(old) is not None
    ring.look()
    assert (ring.client_of(old), ring.trouble) == (None, None)


def test_the_command_prints_a_key_and_an_entry_that_lets_it_in(path: Path) -> None:
    cli = Typer()
    cli.command()(main)
    result = CliRunner().invoke(cli, ["studio", "--scope", "read"])
    key = next(line.strip() for line in result.stdout.splitlines() if line.strip().startswith("dk_"))
    path.write_text(result.stdout[result.stdout.index("[clients") :])
    client = KeyRing(path).client_of(key)
    assert client is not None
    assert (client.name, client.scopes) == ("studio", {Scope.READ})
    assert CliRunner().invoke(cli, ["../studio"]).exit_code == 2
