"""`--tls-cert` and `--tls-key`: what is wrong with them is said by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from infra.commands.tls_option import tls_files
from infra.stack import CannotStart
from tests.support.certificates import Authority

CA = Authority.make()


def test_pair_that_fits_is_taken(tmp_path: Path) -> None:
    CA.issue(tmp_path)
    found = tls_files(tmp_path / "tls.crt", tmp_path / "tls.key")
    assert found is not None
    assert (found.cert, found.key) == (tmp_path / "tls.crt", tmp_path / "tls.key")


@pytest.mark.parametrize("name", ["tls.crt", "tls.key"])
def test_missing_file_is_named_and_the_other_is_not(tmp_path: Path, name: str) -> None:
    CA.issue(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CannotStart, match=rf"{name}: No such file") as caught:
        tls_files(tmp_path / "tls.crt", tmp_path / "tls.key")
    assert str(caught.value).count(str(tmp_path)) == 1


def test_key_with_a_password_is_told_from_garbage(tmp_path: Path) -> None:
    key = CA.issue(tmp_path) / "tls.key"
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    hidden = serialization.BestAvailableEncryption(b"words")
    pkcs8 = serialization.PrivateFormat.PKCS8
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, pkcs8, hidden))
    with pytest.raises(CannotStart, match=r"the key is encrypted; .* without a password"):
        tls_files(tmp_path / "tls.crt", key)
    key.write_text("nothing")
    with pytest.raises(CannotStart, match=r"tls\.key") as caught:
        tls_files(tmp_path / "tls.crt", key)
    assert "encrypted" not in str(caught.value)
