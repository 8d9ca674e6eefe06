"""Threats of docs/security.md that no other test stands for: crafted models, servers that cheat, people in pictures, the lock."""

import ast
import base64
import gzip
import hashlib
import io
import json
import re
import shutil
import ssl
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import ROOT, SAMPLE, Answer, clean_environment
from tests.test_wire import Server
from vehclass.azure_storage.containers import open_url
from vehclass.azure_storage.get import get
from vehclass.azure_storage.options import BlobOptions
from vehclass.errors import DecodeError, ModelRefused, ReadError, ServiceUnreachable, VehclassError
from vehclass.imaging import decode
from vehclass.model import runtime
from vehclass.model.folder import _version, check_keras_file, file_digest, open_model
from vehclass.records import ImageRef
from vehclass.sources import open_source
from vehclass.stores import open_store
from vehclass.stores.options import StoreOptions

KEY = base64.b64encode(b"canary of a key").decode()


# --- models that somebody else made ---


def signed(folder: Path) -> Path:
    """A folder whose model.json agrees with its files: who crafts a model writes the digests, too."""
    facts = json.loads((folder / "model.json").read_text())
    facts["files"] = {name: file_digest(folder / name) for name in facts["files"]}
    facts["version"] = _version(facts)
    (folder / "model.json").write_text(json.dumps(facts))
    return folder


def crafted(folder: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """The sample model with another model.keras, and digests that fit."""
    shutil.copytree(SAMPLE, folder)
    with zipfile.ZipFile(folder / "model.keras") as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    change(parts)
    with zipfile.ZipFile(folder / "model.keras", "w") as made:
        for name, data in parts.items():
            made.writestr(name, data)
    return signed(folder)


def with_layer(layer: dict[str, Any]) -> Callable[[dict[str, bytes]], None]:
    def change(parts: dict[str, bytes]) -> None:
        config = json.loads(parts["config.json"])
        config["config"]["layers"].append(layer)
        parts["config.json"] = json.dumps(config).encode()

    return change


# What reads a file, asks the network or runs code when it is only built, by the advisory that told of it.
READERS = {
    "CVE-2025-12058": ("StringLookup", {"vocabulary": "/etc/hostname"}),
    "CVE-2025-12058, numbers": ("IntegerLookup", {"vocabulary": "https://127.0.0.1:9/words"}),
    "CVE-2025-12058, words": ("TextVectorization", {"vocabulary": "/etc/hostname"}),
    "CVE-2026-1462": ("TFSMLayer", {"filepath": "/tmp/saved_model"}),
    "CVE-2025-49655": ("TorchModuleWrapper", {"module": "gASV"}),
    "CVE-2024-3660": ("Lambda", {"function": {"class_name": "__lambda__", "config": {"code": "4wEA"}}}),
}


@pytest.mark.parametrize("why", READERS)
def test_a_layer_that_reads_or_runs_is_refused_though_the_digests_fit(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, config = READERS[why]
    layer = {"module": "keras.layers", "class_name": name, "config": config, "registered_name": None}
    folder = open_model(crafted(tmp_path / "m", with_layer(layer)))
    monkeypatch.setattr(runtime, "load_keras", lambda: pytest.fail("the loader was reached"))
    with pytest.raises(ModelRefused, match=f"not allowed .keras.layers.{name}"):
        runtime.KerasRuntime(folder, 8)


def claiming(kind: str, **more: Any) -> Callable[[dict[str, bytes]], None]:
    """The first layer of a kind with other numbers: in its configuration, or in the shape that it is built for."""

    def change(parts: dict[str, bytes]) -> None:
        config = json.loads(parts["config.json"])
        layer = next(one for one in config["config"]["layers"] if one["class_name"] == kind)
        if "channels" in more:
            layer["build_config"]["input_shape"][-1] = more["channels"]
        layer["config"] |= {name: number for name, number in more.items() if name != "channels"}
        parts["config.json"] = json.dumps(config).encode()

    return change


@pytest.mark.parametrize(
    ("kind", "numbers", "why"),
    [
        ("Dense", {"units": 2 * 10**9}, "more weights than it has"),
        ("Dense", {"channels": 10**12}, "more weights than it has"),
        ("Conv2D", {"filters": 10**7}, "more weights than it has"),
        ("Conv2D", {"kernel_size": [10**4, 10**4]}, "more weights than it has"),
        ("BatchNormalization", {"channels": 10**11}, "more weights than it has"),
        ("BatchNormalization", {"axis": [1, 2, 3], "channels": 10**5}, "more weights than it has"),
        ("Conv2D", {"data_format": "channels_first"}, "does not say how large it is"),
        ("Dense", {"lora_rank": 10**9}, "does not say how large it is"),
        ("Dense", {"units": -5}, "does not say how large it is"),
        ("Dense", {"units": "many"}, "does not say how large it is"),
        ("Conv2D", {"kernel_size": 3}, "does not say how large it is"),
    ],
)
def test_layers_that_claim_more_than_the_file_has_never_reach_keras(
    kind: str, numbers: dict[str, Any], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_model(crafted(tmp_path / "m", claiming(kind, **numbers)))
    monkeypatch.setattr(runtime, "load_keras", lambda: pytest.fail("the loader was reached"))
    with pytest.raises(ModelRefused, match=why):
        runtime.KerasRuntime(folder, 8)


def test_an_archive_that_lies_of_its_parts_makes_no_room(tmp_path: Path) -> None:
    """A directory that says that the weights have a hundred terabytes."""
    folder = crafted(tmp_path / "m", claiming("Dense", units=2 * 10**9))
    packed = (folder / "model.keras").read_bytes()
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        said = struct.pack("<II", *[archive.getinfo("model.weights.h5").file_size] * 2)
    at = packed.rindex(said)
    assert at > len(packed) - 1000, "the directory is at the end"
    (folder / "model.keras").write_bytes(packed[: at + 4] + struct.pack("<I", 2**32 - 2) + packed[at + 8 :])
    with pytest.raises(ModelRefused, match="more weights than it has"):
        check_keras_file(folder / "model.keras")


def test_padding_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    padding = {"padding": [[0, 10**6], [0, 10**6]]}
    layer = {"module": "keras.layers", "class_name": "ZeroPadding2D", "config": padding, "registered_name": None}
    folder = open_model(crafted(tmp_path / "m", with_layer(layer)))
    monkeypatch.setattr(runtime, "load_keras", lambda: pytest.fail("the loader was reached"))
    with pytest.raises(ModelRefused, match="padding"):
        runtime.KerasRuntime(folder, 8)


def test_an_input_of_gigapixels_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SAMPLE, tmp_path / "m"))
    facts = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(facts | {"input_size": [10**5, 10**5]}))
    with pytest.raises(ModelRefused, match="100000 x 100000"):
        open_model(signed(folder))


@pytest.mark.parametrize("name", ["model.keras", "openvino.xml", "openvino.bin"])
def test_hdf5_is_refused_though_the_digest_fits(name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SAMPLE, tmp_path / "m"))
    (folder / name).write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 100)
    with pytest.raises(ModelRefused, match=f"{name} is an HDF5 file"):
        open_model(signed(folder))


@pytest.mark.parametrize("data", [b"\x80\x04\x95.", b"cos\nsystem\n(S'true'\ntR.", b"PK\x03\x04", b""])
def test_a_pickle_is_no_model_though_the_digest_fits(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(SAMPLE, tmp_path / "m"))
    (folder / "model.keras").write_bytes(data)
    monkeypatch.setattr(runtime, "load_keras", lambda: pytest.fail("the loader was reached"))
    with pytest.raises(ModelRefused, match="not a Keras 3 file"):
        runtime.KerasRuntime(open_model(signed(folder)), 8)


def test_a_configuration_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.keras", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("metadata.json", "{}")
        bomb.writestr("model.weights.h5", "")
        with bomb.open("config.json", "w") as file:
            for _ in range(65):
                file.write(bytes(2**20))
    assert (tmp_path / "m.keras").stat().st_size < 200_000
    with pytest.raises(ModelRefused, match="configuration is too large"):
        check_keras_file(tmp_path / "m.keras")


# Changes one of the weights, then tries to load the model, and says how that ended.
LOAD = """
import sys
from pathlib import Path
from vehclass.model.folder import open_model
from vehclass.model.runtime import KerasRuntime
for folder in sys.argv[1:]:
    try:
        KerasRuntime(open_model(Path(folder)), 8)
        print(Path(folder).name, "was loaded")
    except Exception as error:
        print(Path(folder).name, "was refused", type(error).__name__)
"""


def test_weights_that_lie_elsewhere_or_claim_terabytes_are_not_loaded(tmp_path: Path) -> None:
    """Keras' own guards against CVE-2026-1669 and CVE-2026-0897 are at work in the version of the lock."""
    import h5py

    def change(how: str) -> Callable[[dict[str, bytes]], None]:
        def changed(parts: dict[str, bytes]) -> None:
            kept = io.BytesIO(parts["model.weights.h5"])
            with h5py.File(kept, "r+") as file:
                found: list[str] = []
                file.visititems(lambda name, one: found.append(name) if getattr(one, "size", 0) > 100 else None)
                name, shape = found[0], file[found[0]].shape
                if how != "whole":
                    del file[name]
                if how == "external":
                    file.create_dataset(name, shape, "f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
                elif how == "link":
                    file[name] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/secret")
                elif how == "terabytes":
                    file.create_dataset(name, (2**20, 2**20), "f4", chunks=(1024, 1024), compression="gzip")
            parts["model.weights.h5"] = kept.getvalue()

        return changed

    secret = tmp_path / "secret"
    secret.write_bytes(b"secret! " * 100_000)
    ways = ("whole", "external", "link", "terabytes")
    folders = [str(crafted(tmp_path / how, change(how))) for how in ways]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *folders],
        capture_output=True,
        text=True,
        timeout=120,
        env=clean_environment(),
        check=True,
    )
    ends = dict(line.split(" was ") for line in done.stdout.splitlines())
    assert ends.pop("whole") == "loaded"
    assert set(ends) == set(ways[1:])
    assert set(ends.values()) == {"refused ModelRefused"}


def test_nothing_here_can_unpickle() -> None:
    """No module imports what runs code from data, and no scheduler keeps its jobs where a pickle would be read."""
    banned = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "jsonpickle"}
    calls = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load"}
    wrong = []
    for file in (ROOT / "vehclass").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Call):
                words = {word.arg: ast.unparse(word.value) for word in node.keywords}
                unsafe = words.get("allow_pickle") == "True" or words.get("safe_mode") == "False"
                unsafe |= words.get("shell") == "True" or {"jobstores", "jobstore"} <= set(words)
                if unsafe or ast.unparse(node.func) in calls or "add_jobstore" in ast.unparse(node.func):
                    wrong.append(f"{file.name}:{node.lineno} {ast.unparse(node.func)}")
            wrong += [f"{file.name} {name}" for name in names if name.split(".")[0] in banned or "jobstores" in name]
            wrong += [f"{file.name} jobstores" for word in [getattr(node, "arg", None)] if word == "jobstores"]
    assert wrong == []


# --- images ---


@pytest.mark.parametrize(
    "head",
    [
        b"SIMPLE  =                    T",
        b"%PDF-1.7\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"8BPS\0\1",
        b"\0\0\0\x0cjP  \r\n\x87\n",
        b"\0\0\0\x18ftypheic",
        b"\xff\x0a\xfa\x1f",
        b"<svg xmlns='http://www.w3.org/2000/svg'>",
        b"II*\0\x08\0\0\0",
        b"\x89HDF\r\n\x1a\n",
        b"\xd7\xcd\xc6\x9a",
    ],
)
def test_a_format_that_nobody_asked_for_reaches_no_decoder(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", lambda *words, **more: pytest.fail("a decoder was asked"))
    with pytest.raises(DecodeError) as caught:
        decode(head + bytes(1000), (8, 8))
    assert caught.value.code in ("unsupported_format", "not_an_image")


def png(side: int, bits: int, colour: int, channels: int) -> bytes:
    """A black PNG, of some hundred kilobytes however large it is."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packed, row = zlib.compressobj(9), bytes(1 + side * bits * channels // 8)
    body = b"".join(packed.compress(row) for _ in range(side)) + packed.flush()
    header = struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits", "colour", "channels"), [(8, 0, 1), (16, 0, 1), (8, 2, 3), (16, 2, 3), (8, 4, 2), (8, 6, 4), (16, 6, 4)]
)
def test_the_largest_image_takes_less_than_two_gigabytes(bits: int, colour: int, channels: int, tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(10_000, bits, colour, channels))
    code = (
        "import resource, sys, time\nfrom pathlib import Path\nfrom vehclass.imaging import decode\n"
        "began = time.monotonic(); decode(Path(sys.argv[1]).read_bytes(), (224, 224))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, time.monotonic() - began)"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "bomb.png")]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=clean_environment(), timeout=60)
    megabytes, seconds = map(float, done.stdout.split())
    assert megabytes < 2000
    assert seconds < 20


# --- people in the pictures ---


def test_what_a_camera_wrote_into_a_photo_is_kept_nowhere(
    tmp_path: Path, drawn: Path, vehclass: Callable[..., Answer]
) -> None:
    """Place, owner, serial number, comment, preview: not in the store, the exports, the output or the log."""
    canary = "canaryof4camera"
    exif = Image.Exif()
    exif[0x010F], exif[0x013B], exif[0x8298], exif[0x9286] = (canary,) * 4  # maker, artist, copyright, comment
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 51.0, 29.625), 29: canary})  # a place, a date
    exif.get_ifd(0x8769).update({0xA431: canary, 0xA430: canary})  # serial number, owner
    folder = tmp_path / "photos"
    folder.mkdir()
    photo = Image.open(next(iter(sorted(drawn.rglob("*.jpg")))))
    for number, kind in enumerate(("JPEG", "PNG", "WEBP")):
        more = {"comment": canary.encode()} if kind == "JPEG" else {}
        photo.save(folder / f"{number}.jpg", kind, exif=exif, xmp=f"<x>{canary}</x>".encode(), **more)
    whole = (folder / "0.jpg").read_bytes()
    assert whole.count(canary.encode()) >= 6
    (folder / "3.jpg").write_bytes(whole[: len(whole) // 2])  # one that fails
    night = vehclass("classify-batch", "-c", folder, "-m", SAMPLE, "--store", "r.db", "--json", "--verbose")
    assert (night.code, night.json["classified"], night.json["failed"]) == (3, 3, 1), night.err
    said = [night.out + night.err]
    for what in ("predictions", "failures"):
        for kind in ("csv", "jsonl", "parquet"):
            done = vehclass("results", "export", "--what", what, "--out", f"{what}.{kind}", "--store", "r.db")
            assert done.code == 0, done.err
    one = vehclass("classify", folder / "0.jpg", "-m", SAMPLE, "--json")
    assert one.code == 0, one.err
    said.append(one.out + one.err)
    assert not [text for text in said if canary in text or "29.625" in text]
    kept = [file for file in tmp_path.rglob("*") if file.is_file() and file.parent != folder]
    assert len(kept) == 7
    for file in kept:
        data = file.read_bytes()
        assert canary.encode() not in data, file
        assert whole[-200:] not in data, file  # nor its pixels


# --- servers that cheat ---


class Cheat:
    """A server that answers everything in one way, and remembers who asked."""

    def __init__(self, status: int = 200, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.seen: list[tuple[str, dict[str, str]]] = []
        cheat = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def answer(self) -> None:
                cheat.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        for method in ("GET", "HEAD", "PUT", "POST"):
            setattr(Handler, f"do_{method}", Handler.answer)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *words: None  # type: ignore[method-assign]  # a client that hangs up
        self.port = int(self.server.server_address[1])

    @contextmanager
    def running(self) -> Iterator["Cheat"]:
        thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            self.server.server_close()
            thread.join()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_credential_goes_where_a_server_points(status: int) -> None:
    with Cheat(404).running() as elsewhere:
        there = {"Location": f"http://127.0.0.1:{elsewhere.port}/account/container"}
        with Cheat(status, there).running() as first:
            place = f"http://127.0.0.1:{first.port}/account/container"
            source = open_source(place, BlobOptions(account_key=KEY))
            ref = ImageRef("id", source.url, "a.jpg", "1", 10, datetime.now(UTC))
            for ask in (source.check, lambda: list(source.pages()), lambda: source.read(ref)):
                with pytest.raises((VehclassError, ReadError)):
                    ask()
            asked = len(first.seen)
            assert asked >= 3
            with pytest.raises(ServiceUnreachable, match="no Cosmos DB"):
                open_store(f"cosmos://127.0.0.1:{first.port}/db", options=StoreOptions(wait=0, cosmos_key=KEY))
            assert len(first.seen) > asked
            assert all("authorization" in headers for _, headers in first.seen)
        assert elsewhere.seen == []


@pytest.mark.parametrize("packed", [False, True])
def test_an_answer_that_is_larger_than_it_may_be_is_not_read(packed: bool) -> None:
    """Some hundred megabytes, as they are and as little gzip: they are never held."""
    body, headers = bytes(200 * 2**20), {}
    if packed:
        body, headers = gzip.compress(body), {"Content-Encoding": "gzip"}
    code = (
        "import resource, sys\nfrom datetime import UTC, datetime\n"
        "from vehclass.azure_storage.options import BlobOptions\nfrom vehclass.records import ImageRef\n"
        "from vehclass.sources import open_source\n"
        "source = open_source(sys.argv[1], BlobOptions(account_key='a2V5'))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for ask in (lambda: source.read(ImageRef('i', source.url, 'a.jpg', '1', 1000, datetime.now(UTC))), source.check):\n"
        "    try: ask()\n"
        "    except Exception as error: print(type(error).__name__, end=' ')\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    with Cheat(200, headers, body).running() as cheat:
        words = [sys.executable, "-c", code, f"http://127.0.0.1:{cheat.port}/account/container"]
        done = subprocess.run(words, capture_output=True, text=True, check=True, env=clean_environment(), timeout=120)
    *said, megabytes = done.stdout.split()
    assert said == ["ServiceUnreachable", "ServiceUnreachable"]
    assert int(megabytes) < 50


@pytest.fixture(scope="module")
def self_signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """A certificate for the names that are asked below, which nobody has vouched for, and its file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "account")])
    names = [x509.DNSName("localhost"), x509.DNSName("account.documents.azure.com")]
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("certificate") / "both.pem"
    plain = serialization.NoEncryption()
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    file.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context, file


@contextmanager
def disguised(certificate: ssl.SSLContext) -> Iterator[Cheat]:
    cheat = Cheat()
    cheat.server.socket = certificate.wrap_socket(cheat.server.socket, server_side=True)
    with cheat.running():
        yield cheat


@pytest.mark.parametrize(
    ("vouched", "host", "told"),
    [
        ("by nobody", "localhost", False),
        ("by a file", "127.0.0.1", False),
        ("by a file", "localhost", True),
        ("by a folder", "localhost", True),
        ("by an empty folder", "localhost", False),
    ],
)
def test_only_a_blob_server_with_a_certificate_for_its_name_is_told_anything(
    vouched: str,
    host: str,
    told: bool,
    self_signed: tuple[ssl.SSLContext, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    certificate, file = self_signed
    known = tmp_path / "b\u00fcndel"
    if vouched != "by nobody":
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(known))
    if "folder" in vouched:
        known.mkdir()
        monkeypatch.setenv("SSL_CERT_FILE", "" if told else str(file))  # what else knows it does not count
    if vouched == "by a file":
        shutil.copy(file, known)
    if vouched == "by a folder":  # where OpenSSL looks it up by a hash of its subject
        asked = ["openssl", "x509", "-noout", "-hash", "-in", str(file)]
        shutil.copy(file, known / f"{subprocess.check_output(asked, text=True).strip()}.0")
    with disguised(certificate) as cheat:
        source = open_source(f"https://{host}:{cheat.port}/account/container", BlobOptions(account_key=KEY))
        with pytest.raises(ServiceUnreachable, match="damaged" if told else "certificate"):
            source.check()
    assert bool(cheat.seen) is told


def test_a_proxys_tunnel_carries_tls_and_its_headers_are_not_the_servers(
    self_signed: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    certificate, file = self_signed

    def forward(source: socket.socket, target: socket.socket) -> None:
        while piece := source.recv(65536):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)

    def dig(connection: socket.socket, lines: list[str]) -> None:
        with socket.create_connection(("127.0.0.1", cheat.port)) as there:
            connection.sendall(b"HTTP/1.1 200 Go on\r\nContent-Encoding: gzip\r\n\r\n")
            back = threading.Thread(target=forward, args=(there, connection), daemon=True)
            back.start()
            forward(connection, there)
            back.join()

    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(file))
    monkeypatch.setenv("no_proxy", "")
    with disguised(certificate) as cheat, Server(dig).running() as proxy:
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{proxy.port}")
        line = open_url(BlobOptions(account_key=KEY), f"https://localhost:{cheat.port}/account/container").line
        answer = get(line, "a.jpg", {}, {}, 10)
        line.pipeline._transport.close()
    assert (answer.status_code, answer.reason, answer.headers["content-length"]) == (200, "OK", "0")
    assert [lines[0] for lines in proxy.asked] == [f"CONNECT localhost:{cheat.port} HTTP/1.1"]
    assert [path for path, _ in cheat.seen] == ["/account/container/a.jpg"]


def test_a_database_whose_certificate_nobody_vouches_for_is_told_nothing(
    self_signed: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    real = socket.getaddrinfo

    def here(host: Any, *words: Any, **more: Any) -> Any:
        named = host.decode() if isinstance(host, bytes) else host
        return real("127.0.0.1" if named and named.startswith("account.") else host, *words, **more)

    monkeypatch.setattr(socket, "getaddrinfo", here)
    with disguised(self_signed[0]) as cheat:
        with pytest.raises(ServiceUnreachable):
            url = f"cosmos://account.documents.azure.com:{cheat.port}/db"
            open_store(url, options=StoreOptions(wait=0, timeout=5, cosmos_key=KEY))
    assert cheat.seen == []


# --- what is installed ---


def locked() -> dict[str, tuple[str, set[str]]]:
    """The version and the sha256 of every file of each package in the lock, by its name."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8").replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            match = re.fullmatch(
                r"([A-Za-z0-9._-]+)==([^\s;]+)\s*(?:;[^-]*)?((?:\s*--hash=sha256:[0-9a-f]{64})+)\s*", line
            )
            assert match, f"not pinned with a hash: {line[:80]}"
            found[match[1]] = (match[2], set(re.findall(r"sha256:(\w+)", match[3])))
    return found


def test_every_package_is_pinned_with_hashes_and_installed_so() -> None:
    assert len(locked()) > 50
    setup = (ROOT / "scripts/setup").read_text(encoding="utf-8")
    assert "install --only-binary=:all: --require-hashes -r requirements.lock" in setup
    assert "pip install" not in setup.replace("-m pip install -qq --disable-pip-version-check --no-deps", "")


def wheel(folder: Path, content: str) -> Path:
    """A package of one line."""
    folder.mkdir()
    file = folder / "tiny_vehicle-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("tiny_vehicle.py", content)
        made.writestr(
            "tiny_vehicle-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-vehicle\nVersion: 1.0\n"
        )
        made.writestr(
            "tiny_vehicle-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        made.writestr("tiny_vehicle-1.0.dist-info/RECORD", "")
    return file


def test_an_altered_wheel_is_not_installed(tmp_path: Path) -> None:
    """The same words as scripts/setup has, on a package of our own."""
    honest, altered = wheel(tmp_path / "honest", "x = 1\n"), wheel(tmp_path / "altered", "x = 2\n")
    digest = hashlib.sha256(honest.read_bytes()).hexdigest()
    (tmp_path / "lock").write_text(f"tiny-vehicle==1.0 --hash=sha256:{digest}\n")
    ends = []
    for place in (honest, altered):
        words = [
            "-m",
            "pip",
            "install",
            "-qq",
            "--disable-pip-version-check",
            "--no-deps",
            "--no-index",
            "--no-cache-dir",
        ]
        words += ["--only-binary=:all:", "--require-hashes", "-r", str(tmp_path / "lock")]
        words += ["--find-links", str(place.parent), "--target", str(tmp_path / f"into-{place.parent.name}")]
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, timeout=60)
        ends.append((done.returncode, "DO NOT MATCH THE HASHES" in done.stderr))
    assert ends == [(0, False), (1, True)]
    assert (tmp_path / "into-honest/tiny_vehicle.py").is_file()
    assert not (tmp_path / "into-altered/tiny_vehicle.py").exists()


def test_the_sbom_lists_what_is_locked_with_versions_and_hashes(tmp_path: Path) -> None:
    if find_spec("cyclonedx_py") is None:
        pytest.skip("cyclonedx-bom is not installed")
    said = []
    for words in ([], ["sbom.json"]):
        done = subprocess.run(
            [ROOT / "scripts/sbom", *words], capture_output=True, text=True, check=True, cwd=tmp_path, timeout=120
        )
        assert done.stderr == ""
        said.append(done.stdout)
    assert said[1] == ""
    assert said[0].strip() == (tmp_path / "sbom.json").read_text(encoding="utf-8").strip()
    made = json.loads(said[0])
    assert (made["bomFormat"], made["metadata"]["component"]["name"]) == ("CycloneDX", "vehclass")
    listed = {}
    for one in made["components"]:
        hashes = [each for place in one["externalReferences"] for each in place.get("hashes", ())]
        assert {each["alg"] for each in hashes} == {"SHA-256"}
        listed[one["name"]] = (one["version"], {each["content"] for each in hashes})
    assert listed == locked()


NOBODY_ELSE = """
import socket
def told(where):
    with open({place!r}, "a") as file:
        file.write(f"{{where}}\\n")
real_ask, real_connect = socket.getaddrinfo, socket.socket.connect
def ask(host, *rest, **more):
    if host not in (None, "localhost", "127.0.0.1", b"localhost", b"127.0.0.1"):
        told(host)
    return real_ask(host, *rest, **more)
def connect(self, address):
    if isinstance(address, tuple) and address[0] != "127.0.0.1":
        told(address)
    return real_connect(self, address)
socket.getaddrinfo, socket.socket.connect = ask, connect
"""


def test_nobody_is_told_that_it_is_used(tmp_path: Path, drawn: Path, vehclass: Callable[..., Answer]) -> None:
    """Libraries have been seen to report home: no name is looked up and nothing is connected to, training included."""
    place, home = tmp_path / "told", tmp_path / "home"
    (tmp_path / "watch").mkdir()
    home.mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(NOBODY_ELSE.format(place=str(place)))
    watched = {"PYTHONPATH": f"{tmp_path / 'watch'}:{ROOT}", "HOME": str(home)}
    done = vehclass("classify-batch", "-c", drawn, "-m", SAMPLE, "--store", "sqlite:///r.db", **watched)
    assert done.code == 3, done.err
    words = ("--out", "made", "--epochs", "1", "--input-size", "32", "--preset", "quick")
    assert vehclass("train", drawn / "manifest.csv", *words, timeout=400, **watched).code == 0
    assert vehclass("doctor", "-m", SAMPLE, **watched).code in (0, 1)
    code = "from vehclass.model.frameworks import load_openvino; load_openvino(); import nncf"
    subprocess.run([sys.executable, "-c", code], env=clean_environment(**watched), check=True, capture_output=True)
    assert not place.exists(), place.read_text()
    assert not (home / "intel").exists()
    # The watch itself sees what it should.
    code = "import socket, contextlib\nwith contextlib.suppress(OSError): socket.getaddrinfo('example.invalid', 80)"
    subprocess.run([sys.executable, "-c", code], env=clean_environment(**watched), check=True)
    assert place.read_text() == "example.invalid\n"
