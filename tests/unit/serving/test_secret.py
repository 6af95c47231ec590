import re

import pytest

from serving.errors import ServingError
from serving.secret import new_secret, secret_in


def test_a_missing_file_is_made_for_its_owner_alone(tmp_path):
    path = tmp_path / "secret"
    first = secret_in(path)
    assert re.fullmatch(r"[A-Za-z0-9_-]{32}", first)
    assert path.stat().st_mode & 0o777 == 0o600
    assert secret_in(path) == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret"]


def test_secrets_differ():
    assert len({new_secret() for _ in range(100)}) == 100


def test_a_callers_file_is_read_without_its_newline(tmp_path):
    path = tmp_path / "secret"
    path.write_text("0123456789abcdef0123456789abcdef\n")
    assert secret_in(path) == "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    "text", ["", "short", "with spaces in between", "colon:in:the:secret", "equals=in=the=secret", "x" * 600]
)
def test_what_cannot_be_a_secret_is_refused(tmp_path, text):
    path = tmp_path / "secret"
    path.write_text(text)
    with pytest.raises(ServingError, match="openssl rand"):
        secret_in(path)


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(ServingError, match="nowhere/secret"):
        secret_in(tmp_path / "nowhere" / "secret")


def test_a_file_that_another_user_made_first_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "secret"
    path.write_text("0123456789abcdef0123456789abcdef\n")
    owner = path.stat().st_uid
    monkeypatch.setattr("serving.secret._ROOT_UID", owner + 1)  # where this test runs as root
    monkeypatch.setattr("os.geteuid", lambda: owner + 2)
    with pytest.raises(ServingError, match=f"belongs to another user \\({owner}\\)"):
        secret_in(path)
