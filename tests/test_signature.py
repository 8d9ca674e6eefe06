"""A signed model is the one that its owner signed, and where a signature is asked for nothing else is opened."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.conftest import VEHCLASS, Answer, Azurite, clean_environment

SAMPLE = Path(__file__).parent.parent / "models/sample"
Vehclass = Callable[..., Answer]


def pair(folder: Path, name: str, password: bytes | None = None) -> tuple[Path, Path]:
    """A private key and its public one, as files."""
    key = ec.generate_private_key(ec.SECP256R1())
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    form = serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, hidden))
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, spki))
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return pair(tmp_path, "ours")


@pytest.fixture
def signed(tmp_path: Path, keys: tuple[Path, Path], vehclass: Vehclass) -> Path:
    folder = tmp_path / "signed"
    shutil.copytree(SAMPLE, folder)
    done = vehclass("model", "sign", folder, "--key", keys[0])
    assert done.code == 0, done.err
    assert "is signed" in done.out
    return folder


def opened(vehclass: Vehclass, folder: Path, public: Path) -> Answer:
    return vehclass("model", "show", folder, VEHCLASS_MODEL_KEY=str(public))


def test_a_signed_model_is_opened(signed: Path, keys: tuple[Path, Path], vehclass: Vehclass) -> None:
    assert opened(vehclass, signed, keys[1]).code == 0
    (signed / "card.md").write_text("A note for people.")
    assert opened(vehclass, signed, keys[1]).code == 0, "a document is nobody's answer"


def test_a_link_to_it_and_a_registry_around_it_change_nothing(
    signed: Path, keys: tuple[Path, Path], vehclass: Vehclass
) -> None:
    """`train --out models/NAME`, sign, promote: production.json and the copy lie beside the files then."""
    (signed / "production.json").write_text("{}")
    (signed / ".production.json.lock").touch()
    shutil.copytree(SAMPLE, signed / "309bb70cce32")
    link = signed.with_name("current")
    link.symlink_to(signed)
    assert opened(vehclass, link, keys[1]).code == 0
    assert vehclass("model", "sign", link, "--key", keys[0]).code == 0
    assert opened(vehclass, signed, keys[1]).code == 0


def test_the_standards_own_program_agrees(signed: Path, keys: tuple[Path, Path]) -> None:
    words = ["-m", "model_signing", "verify", "key", str(signed), "--signature", str(signed / "model.sig")]
    done = subprocess.run(
        [sys.executable, *words, "--public_key", str(keys[1])], capture_output=True, text=True, env=clean_environment()
    )
    assert done.returncode == 0, done.stderr
    assert "succeeded" in done.stdout


def test_without_a_signature_it_is_refused(tmp_path: Path, keys: tuple[Path, Path], vehclass: Vehclass) -> None:
    answer = opened(vehclass, SAMPLE, keys[1])
    assert answer.code == 2
    assert "it is not signed" in answer.err


def test_anothers_signature_is_refused(signed: Path, tmp_path: Path, vehclass: Vehclass) -> None:
    _, theirs = pair(tmp_path, "theirs")
    answer = opened(vehclass, signed, theirs)
    assert answer.code == 2
    assert "its signature is not one of" in answer.err


def test_what_was_changed_and_given_fitting_digests_is_refused(
    signed: Path, keys: tuple[Path, Path], vehclass: Vehclass
) -> None:
    """A higher threshold in model.json would let answers pass unseen; with a new version all digests fit."""
    with_other_threshold(signed)
    answer = opened(vehclass, signed, keys[1])
    assert answer.code == 2
    assert "model.json" in answer.err


def test_a_file_that_was_added_is_refused(signed: Path, keys: tuple[Path, Path], vehclass: Vehclass) -> None:
    (signed / "libextra.so").write_bytes(b"\x7fELF")
    answer = opened(vehclass, signed, keys[1])
    assert answer.code == 2
    assert "libextra.so" in answer.err


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\xff" * 100, b'{"mediaType": "x", "dsseEnvelope": {"payload": "AAAA"}}']
)
def test_a_made_up_signature_is_refused(
    signed: Path, keys: tuple[Path, Path], vehclass: Vehclass, content: bytes
) -> None:
    (signed / "model.sig").write_bytes(content)
    answer = opened(vehclass, signed, keys[1])
    assert answer.code == 2
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    "words",
    [
        ["classify-batch", "-c", "photos", "-m", "MODEL", "--store", "sqlite:///r.db"],
        ["model", "export", "MODEL", "--format", "saved_model"],
        ["train", "photos", "--out", "new", "--weights", "MODEL"],
        ["train", "photos", "--out", "new", "--weights", "MODEL", "--backbone", "small"],
        ["train", "photos", "--out", "new", "--weights", "some.weights.h5"],
        ["model", "push", "MODEL", "--registry", "models"],
        ["model", "promote", "sample@VERSION", "--registry", "models"],
        ["model", "rollback", "sample", "--registry", "models"],
    ],
)
def test_nothing_is_done_with_an_unsigned_model(
    words: list[str], keys: tuple[Path, Path], drawn: Path, tmp_path: Path, vehclass: Vehclass
) -> None:
    (tmp_path / "photos").symlink_to(drawn)
    (tmp_path / "some.weights.h5").write_bytes(b"weights")
    if "--registry" in words:
        put_into_production_twice(tmp_path / "models", vehclass)
    filled = [{"MODEL": str(SAMPLE), "sample@VERSION": VERSION}.get(word, word) for word in words]
    answer = vehclass(*filled, VEHCLASS_MODEL_KEY=str(keys[1]))
    assert answer.code == 2
    assert "signed" in answer.err


VERSION = f"sample@{json.loads((SAMPLE / 'model.json').read_text())['version']}"


def put_into_production_twice(registry: Path, vehclass: Vehclass) -> None:
    """The sample, and then another version of it, so that there is one to go back to."""
    other = registry.with_name("other")
    shutil.copytree(SAMPLE, other)
    with_other_threshold(other)
    for folder in (SAMPLE, other):
        assert vehclass("model", "push", folder, "--registry", registry).code == 0
        version = json.loads((folder / "model.json").read_text())["version"]
        done = vehclass("model", "promote", f"sample@{version}", "--registry", registry, "--force")
        assert done.code == 0, done.err


def with_other_threshold(folder: Path) -> None:
    """A model whose digests fit, though it is another."""
    code = (
        "import json, sys\nfrom pathlib import Path\nfrom vehclass.model import folder\n"
        "file = Path(sys.argv[1]) / 'model.json'\nfacts = json.loads(file.read_text())\n"
        "facts['tasks'][0]['threshold'] = 0.0\nfacts['version'] = folder._version(facts)\n"
        "file.write_text(json.dumps(facts))\nfolder.open_model(file.parent)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, env=clean_environment())


def test_a_signature_goes_through_the_registry(
    signed: Path, keys: tuple[Path, Path], azurite: Azurite, tmp_path: Path, vehclass: Vehclass
) -> None:
    """Also one that is made after the version was put there, and fetched before."""
    azurite.container("signed-models")
    there = f"http://127.0.0.1:{azurite.port}/{azurite.ACCOUNT}/signed-models"
    env = {"VEHCLASS_MODELS": there, "AZURE_STORAGE_KEY": azurite.KEY, "VEHCLASS_CACHE": str(tmp_path / "cache")}
    unsigned = signed.with_name("unsigned")
    shutil.copytree(SAMPLE, unsigned)
    assert vehclass("model", "push", unsigned, **env).code == 0
    version = json.loads((SAMPLE / "model.json").read_text())["version"]
    assert vehclass("model", "promote", f"sample@{version}", **env).code == 0
    assert vehclass("model", "show", "sample", **env).code == 0
    asked = env | {"VEHCLASS_MODEL_KEY": str(keys[1])}
    assert "it is not signed" in vehclass("model", "show", "sample", **asked).err
    assert vehclass("model", "push", signed, **asked).code == 0
    assert vehclass("model", "show", "sample", **asked).code == 0


def test_keys_that_are_none(signed: Path, tmp_path: Path, keys: tuple[Path, Path], vehclass: Vehclass) -> None:
    rsa_key = rsa.generate_private_key(65537, 2048)
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    (tmp_path / "rsa.pub").write_bytes(rsa_key.public_key().public_bytes(serialization.Encoding.PEM, form))
    for words, env in (
        (["model", "show", signed], {"VEHCLASS_MODEL_KEY": str(tmp_path / "rsa.pub")}),
        (["model", "sign", signed, "--key", keys[1]], {}),
        (["model", "sign", signed, "--key", tmp_path / "no.pem"], {}),
        (["model", "show", signed], {"VEHCLASS_MODEL_KEY": str(tmp_path / "no.pub")}),
        (["model", "show", signed], {"VEHCLASS_MODEL_KEY": str(signed / "model.json")}),
    ):
        answer = vehclass(*words, **env)
        assert answer.code == 2
        assert "openssl" in answer.err
        assert "Traceback" not in answer.err


def test_a_key_with_a_password(signed: Path, tmp_path: Path, vehclass: Vehclass) -> None:
    private, public = pair(tmp_path, "locked", b"open sesame")
    for said, code in (("wrong", 2), ("open sesame", 0)):
        words = [*VEHCLASS, "model", "sign", str(signed), "--key", str(private)]
        done = subprocess.run(words, input=f"{said}\n", text=True, capture_output=True, env=clean_environment())
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
    assert opened(vehclass, signed, public).code == 0
