"""Who signs what a command publishes, and whether the nodes of this machine will use it."""

from __future__ import annotations

from pathlib import Path

from infra.stack import CannotStart, StackFile
from registry_sync.signing import Sign, load_key
from registry_sync.trust import read_keys_file


def signer_of(key: Path | None, stack: StackFile | None) -> Sign:
    """Return what signs a manifest: by a file of a private key, or not at all.

    Args:
        stack: that runs here, if any: what it would refuse is refused before it is published.

    Raises:
        BadKey, BadTrust: see there.
        CannotStart: the stack would not use what is signed so, or not at all.
    """
    required = "" if stack is None else stack.require_signed
    if key is None:
        if required:
            raise CannotStart(
                "the stack that runs here uses only signed versions (--require-signed): "
                "publish with --sign KEYFILE"
            )
        return lambda manifest: manifest
    signing = load_key(key)
    if required and signing.public.id not in read_keys_file(Path(required)).trusted:
        raise CannotStart(
            f"--sign {key}: the stack that runs here does not trust the key {signing.public.id}: "
            f"`tidepool keys signing trust {key}.pub`, or another key"
        )
    return signing.sign
