"""Signatures of model folders: who made a model, where digests only say that it is whole.

The form is that of the OpenSSF's model signing (a Sigstore bundle with an in-toto statement of every file's digest), by a
key of an elliptic curve: `model_signing verify key` checks it, too. Documents for people are left out, so that a card
may be added to, and so are folders and hidden files, which no model is loaded from; any other file must have been signed.
"""

import importlib.util
from pathlib import Path
from typing import Any, Final

from vehclass.errors import ModelRefused, UsageError

SIGNATURE_FILE: Final = "model.sig"


def sign(folder: Path, key: Path, password: str | None, left_out: frozenset[str]) -> Path:
    """Writes a folder's signature with a private key (PEM), and says where it is.

    Raises UsageError for a key that cannot be used, TypeError for one that needs a password when none is given.
    """
    _require()
    from model_signing import signing

    folder = folder.resolve()  # a link to a folder is no file of a model
    target = folder / SIGNATURE_FILE
    try:
        # Its type says str; what it hands the password to wants bytes.
        secret: Any = None if password is None else password.encode()
        config = signing.Config().use_elliptic_key_signer(private_key=key, password=secret)
    except _unusable() as error:
        raise UsageError(reason=f"{key} cannot sign: {_first_line(error)}. {_KEYS}") from error
    try:
        config.set_hashing_config(_hashing(folder, left_out)).sign(folder, target)
    except (ValueError, OSError) as error:
        raise UsageError(reason=f"{folder} cannot be signed: {_first_line(error)}.") from error
    return target


def check(folder: Path, key: Path, left_out: frozenset[str]) -> None:
    """Raises ModelRefused unless the folder's files are those that the owner of a public key (PEM) signed."""
    _require()
    from model_signing import verifying

    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=key)
    except _unusable() as error:
        raise UsageError(reason=f"The key {key} cannot check signatures: {_first_line(error)}. {_KEYS}") from error
    folder = folder.resolve()
    signature = folder / SIGNATURE_FILE
    if not signature.is_file():
        raise ModelRefused(
            path=folder, reason=f"it is not signed, and VEHCLASS_MODEL_KEY asks for a signature by {key}"
        )
    try:
        config.set_hashing_config(_hashing(folder, left_out)).verify(folder, signature)
    except Exception as error:  # whatever a made-up bundle brings down in the libraries that read it
        reason = _first_line(error)
        raise ModelRefused(
            path=folder, reason=f"its signature is not one of {key} for these files ({reason})"
        ) from error


_KEYS: Final = "Make a pair with: openssl ecparam -name prime256v1 -genkey -noout -out key.pem; openssl ec -in key.pem -pubout -out key.pub"


def _hashing(folder: Path, left_out: frozenset[str]) -> Any:
    """All but documents, and what a registry has in a folder that training wrote into it: nothing of that is loaded."""
    from model_signing import hashing

    beside = {entry.name for entry in folder.iterdir() if entry.is_dir() or entry.name.startswith(".")}
    paths = sorted({*left_out, *beside, "production.json", SIGNATURE_FILE})
    return hashing.Config().set_ignored_paths(paths=paths, ignore_git_paths=False)


def _unusable() -> tuple[type[Exception], ...]:
    """What comes of a file that is no key, or a key of another kind."""
    from cryptography.exceptions import UnsupportedAlgorithm

    return (ValueError, OSError, AttributeError, UnsupportedAlgorithm)


def _require() -> None:
    if importlib.util.find_spec("model_signing") is None:
        raise UsageError(
            reason="Signatures need the package model-signing. Install it: pip install 'vehclass[signing]'."
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
