"""Whatever comes from outside is taken or refused in a sentence: settings, URLs, manifests, names, the bytes of images."""

import csv
import io
import json
import os
import resource
import socket
import string
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, seed, settings
from hypothesis import strategies as some
from PIL import Image, PngImagePlugin

from tests.conftest import SAMPLE, Answer
from vehclass.azure_storage.options import BlobOptions
from vehclass.cli.show import plain
from vehclass.errors import DataError, DecodeError, StoreError, UsageError
from vehclass.exports import cell
from vehclass.imaging import decode
from vehclass.imaging_apart import Apart
from vehclass.settings import Settings, load, schedules
from vehclass.sources import open_source
from vehclass.stores import open_store
from vehclass.stores.azure_sql_login import login_of
from vehclass.stores.cosmos_account import account_of
from vehclass.stores.options import StoreOptions
from vehclass.training.dataset import Catalogue, read_catalogue

SEED: Final = 20261121  # of every drawing below; a failure names it, with the number of what failed
SIZE: Final = (64, 48)
QUICK, FULL = 2_000, 500_000
LONGEST: Final = 30.0  # seconds that no image may take; 8 were the most, on a machine with other work
MOST_MEMORY: Final = 4 * 2**30  # of addresses: an image of 100 million pixels needs some 2 GB, and libraries the rest
# What a damaged image may be told to be. Not among them: decoder_crashed, decode_timeout, out_of_memory.
REASONS: Final = {"empty", "corrupt", "truncated", "not_an_image", "too_many_pixels", "unsupported_format"}

always = settings(
    max_examples=300,
    deadline=5_000,
    print_blob=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)


# --- images: what is mutated ---


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_by_hand(values: np.ndarray, *, interlaced: bool) -> bytes:
    """A PNG of a kind that Pillow does not write: 16 bits a colour, or Adam7. `values` are [height, width, channels]."""
    height, width, channels = values.shape
    big = values.astype(values.dtype.newbyteorder(">"))
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = []
    for x, y, over, down in passes if interlaced else [(0, 0, 1, 1)]:
        rows += [b"\0" + line.tobytes() for line in big[y::down, x::over]]
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, values.itemsize * 8, colour, 0, 0, interlaced)
    body = zlib.compress(b"".join(rows))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


@cache
def originals(drawn: Path) -> tuple[bytes, ...]:
    """Whole photos of every kind that is read here: drawn ones, and small ones of what their formats can do."""
    photo = Image.open(next(iter(sorted(drawn.rglob("*.jpg")))))
    small = photo.resize((61, 43))
    frames = [small, small.rotate(90, expand=False), small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    seen = small.convert("RGBA")
    seen.putalpha(Image.linear_gradient("L").resize(small.size))
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "x" * 3000, zip=True)
    texts.add_itxt("Title", "ä", "de", "Titel", zip=True)
    made = [file.read_bytes() for file in sorted(drawn.rglob("*.jpg"))[:3]]
    made += [saved(small, "JPEG"), saved(small, "JPEG", quality=100, subsampling=0), saved(small, "JPEG", quality=1)]
    made += [saved(small, "JPEG", progressive=True), saved(small.convert("L"), "JPEG", progressive=True)]
    made += [saved(small.convert("CMYK"), "JPEG"), saved(small.convert("L"), "JPEG", restart_marker_blocks=3)]
    made += [saved(small, "JPEG", comment=b"c" * 200, icc_profile=b"p" * 70_000), saved(small, "JPEG", keep_rgb=True)]
    made += [saved(small, "MPO", save_all=True, append_images=frames[1:])]
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = turn, "maker"
        exif.get_ifd(0x8825)[2] = (51.5, 0.0, 0.0)
        made.append(saved(small, ("JPEG", "PNG", "WEBP")[turn % 3], exif=exif))
    made += [saved(small.convert(mode), "PNG") for mode in ("1", "L", "P", "RGB", "LA", "RGBA")]
    made += [saved(small.quantize(7), "PNG", transparency=3, bits=4), saved(small, "PNG", transparency=(1, 2, 3))]
    made += [saved(small, "PNG", pnginfo=texts, icc_profile=b"p" * 5000)]
    made += [saved(small, "PNG", save_all=True, append_images=frames[1:], duration=50)]
    made += [saved(Image.fromarray(np.asarray(small.convert("L")).astype(np.uint16) * 257), "PNG")]
    colours = np.asarray(seen)
    made += [png_by_hand(colours[:, :, :count], interlaced=True) for count in (1, 2, 3, 4)]
    made += [png_by_hand(colours[:, :, :count].astype(np.uint16) * 257, interlaced=count == 3) for count in (2, 3, 4)]
    made += [
        saved(small, "WEBP"),
        saved(small, "WEBP", lossless=True),
        saved(seen, "WEBP"),
        saved(seen, "WEBP", quality=1),
    ]
    made += [saved(seen, "WEBP", lossless=True, exact=True), saved(small, "WEBP", icc_profile=b"p" * 500)]
    made += [saved(seen, "WEBP", save_all=True, append_images=frames[1:], duration=50, lossless=turn > 4)]
    return tuple(made)


# --- images: how they are mutated ---

Draw = np.random.Generator
Mutation = Callable[[bytes, Draw, tuple[bytes, ...]], bytes]
ODD: Final = (0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF)


def flip_bits(data: bytes, draw: Draw, others: tuple[bytes, ...]) -> bytes:
    out = bytearray(data)
    for at in draw.integers(0, len(out), draw.integers(1, 33)):
        out[at] ^= 1 << int(draw.integers(8))
    return bytes(out)


def odd_bytes(data: bytes, draw: Draw, others: tuple[bytes, ...]) -> bytes:
    """A few bytes near the front, where headers are, become such as break arithmetic."""
    out = bytearray(data)
    for at in draw.integers(0, min(len(out), int(draw.choice([40, 200, len(out)]))), draw.integers(1, 9)):
        out[at] = int(draw.choice(ODD))
    return bytes(out)


def cut(data: bytes, draw: Draw, others: tuple[bytes, ...]) -> bytes:
    start, end = sorted(int(at) for at in draw.integers(0, len(data) + 1, 2))
    return data[:start] if draw.random() < 0.5 else data[:start] + data[end:]


def splice(data: bytes, draw: Draw, others: tuple[bytes, ...]) -> bytes:
    other = others[int(draw.integers(len(others)))]
    return data[: int(draw.integers(len(data)))] + other[int(draw.integers(len(other))) :]


def segments(data: bytes) -> list[tuple[int, int, int, str]]:
    """Where the segments of a JPEG, the chunks of a PNG or a WebP are: start, end, and where and how its length stands."""
    found = []
    if data.startswith(b"\xff\xd8"):
        at = 2
        while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in (0xD9, 0xDA):
            end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
            found.append((at, min(end, len(data)), at + 2, ">H"))
            at = end
        found.append((at, len(data), at + 2, ">H"))
    elif data.startswith(b"\x89PNG"):
        at = 8
        while at + 12 <= len(data):
            end = at + 12 + int.from_bytes(data[at : at + 4])
            found.append((at, min(end, len(data)), at, ">I"))
            at = end
    else:
        at = 12
        while at + 8 <= len(data):
            size = int.from_bytes(data[at + 4 : at + 8], "little")
            end = at + 8 + size + size % 2
            found.append((at, min(end, len(data)), at + 4, "<I"))
            at = end
    return [one for one in found if one[0] < one[1]] or [(0, len(data), 0, ">H")]


def one_segment(data: bytes, draw: Draw) -> tuple[int, int, int, str]:
    found = segments(data)
    return found[int(draw.integers(len(found)))]


def edit_length(data: bytes, draw: Draw, others: tuple[bytes, ...]) -> bytes:
    _, _, at, form = one_segment(data, draw)
    width = struct.calcsize(form)
    most = 256**width - 1
    old = int.from_bytes(data[at : at + width], "little" if form[0] == "<" else "big")
    new = int(draw.choice([0, 1, 2, most, most // 2, old - 1, old + 1, old * 2, old + int(draw.integers(1, 5000))]))
    return data[:at] + struct.pack(form, new & most) + data[at + width :]


def repeat_segment(data: bytes, draw: Draw, others: tuple[bytes, ...]) -> bytes:
    start, end, _, _ = one_segment(data, draw)
    return data[:end] + data[start:end][:20_000] * int(draw.choice([1, 2, 3, 30, 300])) + data[end:]


def move_segment(data: bytes, draw: Draw, others: tuple[bytes, ...]) -> bytes:
    start, end, _, _ = one_segment(data, draw)
    rest = data[:start] + data[end:]
    place = one_segment(rest, draw)[0] if rest else 0
    return rest[:place] + data[start:end] + rest[place:]


def edit_size(data: bytes, draw: Draw, others: tuple[bytes, ...]) -> bytes:
    """Another width or height in the header, with the same picture behind it."""
    width, height = (int(draw.choice([0, 1, 2, 60, 62, 4000, 16_383, 65_535, 2**31 - 1])) for _ in range(2))
    out = bytearray(data)
    for start, _, _, form in segments(data):
        if form == ">H" and data[start + 1 : start + 2] in (b"\xc0", b"\xc1", b"\xc2"):
            out[start + 5 : start + 9] = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
        elif form == ">I" and data[start + 4 : start + 8] in (b"IHDR", b"fcTL"):
            at = start + (8 if data[start + 4 : start + 8] == b"IHDR" else 12)
            out[at : at + 8] = struct.pack(">II", width, height)
        elif form == "<I" and data[start : start + 4] == b"VP8X":
            out[start + 12 : start + 18] = width.to_bytes(4, "little")[:3] + height.to_bytes(4, "little")[:3]
        elif form == "<I" and data[start : start + 4] == b"VP8 ":
            out[start + 14 : start + 18] = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
    return with_sums(bytes(out[: len(data)]))


def edit_inside(data: bytes, draw: Draw, others: tuple[bytes, ...]) -> bytes:
    """Bytes of one segment only; in a PNG's picture those before compression: its filters, its pixels."""
    start, end, _, form = one_segment(data, draw)
    if form == ">I" and data[start + 4 : start + 8] == b"IDAT" and draw.random() < 0.7:
        try:
            rows = zlib.decompress(data[start + 8 : end - 4])
        except zlib.error:  # of several chunks of one stream
            return flip_bits(data, draw, others)
        return data[:start] + png_chunk(b"IDAT", zlib.compress(odd_bytes(rows, draw, others), 1)) + data[end:]
    return with_sums(data[:start] + odd_bytes(data[start:end], draw, others) + data[end:])


def with_sums(data: bytes) -> bytes:
    """A PNG with checksums that fit, so that what was changed is looked at; others as they are."""
    if not data.startswith(b"\x89PNG"):
        return data
    out = bytearray(data)
    for start, end, _, _ in segments(data):
        if end - start >= 12:
            out[end - 4 : end] = struct.pack(">I", zlib.crc32(data[start + 4 : end - 4]))
    return bytes(out)


MUTATIONS: Final[tuple[Mutation, ...]] = (
    *(flip_bits, flip_bits, odd_bytes, odd_bytes, cut, splice, edit_length, edit_length),
    *(repeat_segment, move_segment, edit_size, edit_inside, edit_inside, edit_inside),
)


def mutant(number: int, whole: tuple[bytes, ...], seed: int = SEED) -> bytes:
    """The same bytes for the same number: one to three mutations of one photo."""
    draw = np.random.default_rng([seed, number])
    data = whole[number % len(whole)]
    for _ in range(int(draw.choice([1, 1, 2, 3]))):
        if data:
            data = MUTATIONS[int(draw.integers(len(MUTATIONS)))](data, draw, whole)
    return with_sums(data) if draw.random() < 0.5 else data


# --- images: what becomes of them ---


class Bounded(Apart):
    """Helpers that have so much memory, and no more."""

    def _helper(self) -> Any:
        helper = super()._helper()
        resource.prlimit(helper.process.pid, resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
        return helper


def told(apart: Apart, data: bytes) -> str:
    """'ok' for pixels as they were asked for, or the code of the reason."""
    (answer,) = apart.decode([data], SIZE)
    if isinstance(answer, DecodeError):
        assert str(answer).endswith("."), answer
        assert str(answer).isprintable(), answer
        return answer.code
    pixels, facts = answer
    assert (pixels.shape, pixels.dtype) == ((48, 64, 3), np.uint8)
    assert facts.width * facts.height <= 100_000_000
    return "ok"


def storm(
    numbers: range, whole: tuple[bytes, ...], lanes: int = 2
) -> tuple[Counter[str], list[str], tuple[float, int]]:
    """Decodes mutants in helper processes: how often each end, what ended otherwise, the longest time and whose."""
    ends: Counter[str] = Counter()
    wrong: list[str] = []
    slowest = [(0.0, 0)] * lanes
    apart = Bounded(seconds=LONGEST)

    def lane(own: int) -> None:
        for number in numbers[own::lanes]:
            data = mutant(number, whole)
            began = time.monotonic()
            try:
                end = told(apart, data)
            except Exception as error:
                end = f"{type(error).__name__}: {error}"
            slowest[own] = max(slowest[own], (time.monotonic() - began, number))
            ends[end] += 1
            if end not in {"ok", *REASONS}:
                wrong.append(f"mutant({number}), seed {SEED}, {len(data)} bytes: {end}")

    threads = [threading.Thread(target=lane, args=(own,)) for own in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    apart.close()
    return ends, wrong, max(slowest)


def no_mutant_harms(many: int, drawn: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "always")
    whole = originals(drawn)
    began = time.monotonic()
    ends, wrong, (longest, whose) = storm(range(many), whole)
    said = capfd.readouterr().err
    took = time.monotonic() - began
    print(f"seed {SEED}: {many} images in {took:.0f} s, at most {longest:.1f} s each (number {whose}), {dict(ends)}")
    assert not wrong, "\n".join(wrong[:20])
    assert said == ""  # no warning, and nothing of a library
    assert ends.total() == many
    assert ends["ok"] > many / 10  # some harm is harmless, or else too little was looked at
    assert ends["corrupt"] > many / 10
    assert {"truncated", "not_an_image", "too_many_pixels"} <= set(ends)


class TestImages:
    def test_the_originals_are_whole(self, drawn: Path) -> None:
        kinds = Counter(decode(data, SIZE)[1].format for data in originals(drawn))
        assert min(kinds["jpeg"], kinds["png"], kinds["webp"]) >= 8

    def test_mutants_repeat_and_differ(self, drawn: Path) -> None:
        whole = originals(drawn)
        first = [mutant(number, whole) for number in range(500)]
        assert first == [mutant(number, whole) for number in range(500)]
        assert len(set(first)) > 480
        for change in MUTATIONS:
            for data in (whole[3], whole[20], whole[-1]):
                assert any(change(data, np.random.default_rng(n), whole) != data for n in range(20)), change.__name__

    def test_a_mutant_is_a_picture_or_has_a_reason(
        self, drawn: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        no_mutant_harms(QUICK, drawn, monkeypatch, capfd)

    @pytest.mark.slow
    @pytest.mark.timeout(3600)
    def test_half_a_million_mutants(
        self, drawn: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        no_mutant_harms(FULL, drawn, monkeypatch, capfd)


# --- settings ---

NAMES: Final = [one.name for one in fields(Settings) if one.metadata]
VARIABLES: Final = [one.metadata["env"] for one in fields(Settings) if one.metadata]

plain_values = some.one_of(
    some.integers().map(str),
    some.floats().map(lambda number: repr(number).replace("e+", "e")),
    some.booleans().map(lambda truth: str(truth).lower()),
    some.text(some.characters(exclude_categories=["Cs", "Cc"], exclude_characters="'")).map(lambda text: f"'{text}'"),
    some.sampled_from(
        ["''", "inf", "-nan", "1_000", "0xff", "1979-05-27T07:32:00Z", "07:32:00", "'jpeg'", "'\\u0000'"]
    ),
    some.integers(1, 6000).map("9".__mul__),
    some.integers(1, 6000).map(lambda digits: "0x" + "f" * digits),
)
toml_values = some.one_of(
    plain_values,
    some.lists(plain_values, max_size=4).map(lambda values: f"[{', '.join(values)}]"),
    plain_values.map(lambda value: f"{{a = {value}}}"),
    some.integers(1, 5000).map(lambda depth: "[" * depth + "]" * depth),
    some.integers(1, 5000).map(lambda depth: "{a=" * depth + "1" + "}" * depth),
)
toml_names = some.one_of(
    some.sampled_from([*NAMES, "schedule", "[[schedule]]\ncontainer"]),
    some.text(string.ascii_lowercase + "_.-[]'\" ", max_size=12),
)
toml_texts = some.one_of(
    some.lists(some.tuples(toml_names, toml_values), max_size=5).map(
        lambda pairs: "\n".join(f"{name} = {value}" for name, value in pairs).encode("utf-8", "surrogatepass")
    ),
    some.binary(max_size=300),
)
# What an environment can hold: anything but NUL, and bytes that are no UTF-8 as Python shows them.
variable = some.one_of(
    some.text(some.characters(exclude_characters="\0"), max_size=50),
    some.integers().map(str),
    some.sampled_from(["1e999", "nan", "٣", "1_0", " 5 ", "jpeg,", "JPEG, png", "9" * 5000, "\udcff", "true", "/\x1b"]),
)


class TestSettings:
    @always
    @seed(SEED)
    @given(
        toml_texts,
        some.dictionaries(some.sampled_from([*VARIABLES, "XDG_CACHE_HOME"]), variable, max_size=4),
        some.dictionaries(some.sampled_from(NAMES), some.one_of(some.none(), variable, some.integers()), max_size=2),
    )
    @example(b"threads = " + b"9" * 5000, {}, {})
    @example(b"threads = 0x" + b"f" * 5000, {}, {})
    @example(b"[[schedule]]\ncontainer = 0x" + b"f" * 5000, {}, {})
    @example(b"threads = " + b"[" * 5000 + b"]" * 5000, {}, {})
    def test_any_are_taken_or_refused_in_a_sentence(
        self, tmp_path: Path, text: bytes, environment: dict[str, str], flags: dict[str, object]
    ) -> None:
        file = tmp_path / "vehclass.toml"
        file.write_bytes(text)
        try:
            found = load(flags, environment, file)
            assert {row["setting"] for row in found.shown()} == set(NAMES)
        except UsageError as error:
            assert str(error).endswith((".", "?"))
        try:
            assert isinstance(schedules(file), list)
        except UsageError as error:
            assert str(error).endswith((".", "?"))


# --- where photos are, and where results go ---


@contextmanager
def no_network() -> Iterator[list[object]]:
    """Notes who asks for an address or a connection, and gives none."""
    asked: list[object] = []

    def refuse(*words: object, **more: object) -> object:
        asked.append(words)
        raise OSError("no network in this test")

    with pytest.MonkeyPatch.context() as patched:
        for name in ("getaddrinfo", "gethostbyname", "create_connection"):
            patched.setattr(socket, name, refuse)
        for name in ("connect", "connect_ex", "sendto"):
            patched.setattr(socket.socket, name, refuse, raising=False)
        yield asked


pieces = some.one_of(
    some.sampled_from(
        [
            *(
                "account",
                "container",
                "photos/2026",
                "acct.blob.core.windows.net",
                "127.0.0.1",
                "[::1]",
                "localhost",
                "$root",
            ),
            *(
                ":",
                "/",
                "//",
                "?",
                "#",
                "@",
                "%",
                "%00",
                "%2F",
                "%ff",
                "..",
                ".",
                "-",
                "\0",
                "\n",
                "\x1b[31m",
                "\udcff",
                "é",
                "①",
            ),
            *(
                "sig=x",
                "encrypt=no",
                "trust_server_certificate=yes",
                "&",
                "=",
                ";",
                "{",
                "}",
                ":99999",
                ":0",
                "[",
                "]",
                "user:pw@",
            ),
            *("database", "server", "x" * 300, "~", "sqlite", "\ud800", " ", ":memory:"),
        ]
    ),
    some.text(max_size=6),
)
schemes = some.sampled_from(["", "az://", "https://", "http://", "file://", "AZ://", "ftp://", "://"])
store_schemes = some.sampled_from(
    ["", "sqlite:///", "sqlite:////", "sqlite:", "mssql://", "cosmos://", "postgres://", "Cosmos://"]
)
tails = some.lists(pieces, max_size=8).map("".join)
secrets = some.one_of(some.none(), some.sampled_from(["a2V5", "no base64!", "", "ä", "YQ==", "\udcff"]))
connection_strings = some.one_of(
    some.none(),
    some.sampled_from(
        [
            "AccountName=acct;AccountKey=a2V5;EndpointSuffix=core.windows.net",
            "BlobEndpoint=http://127.0.0.1:1/acct;AccountName=acct;AccountKey=a2V5",
            "BlobEndpoint=https://acct.blob.core.windows.net;SharedAccessSignature=sig=x",
            "Server=tcp:server,1433;Database=database;Uid=u;Pwd={a}}b}",
            "Server=server,x;Database=database;Uid=u;Pwd=p",
            "AccountEndpoint=https://account.documents.azure.com:443/;AccountKey=YQ==",
            "AccountEndpoint=http://[;AccountKey=YQ==",
            "AccountEndpoint=https://account.documents.azure.com:x;AccountKey=YQ==",
        ]
    ),
    some.lists(pieces, max_size=6).map("".join),
)


class TestUrls:
    @always
    @seed(SEED)
    @given(schemes, tails, connection_strings, secrets, secrets, some.one_of(some.none(), pieces))
    @example("", "x" * 300 + "?", None, None, None, None)
    def test_any_source_is_opened_or_refused_in_a_sentence(
        self, scheme: str, tail: str, connection: str | None, key: str | None, sas: str | None, account: str | None
    ) -> None:
        options = BlobOptions(connection_string=connection, account=account, account_key=key, sas_token=sas)
        with no_network() as asked:
            try:
                opened = open_source(scheme + tail, options)
                assert urlsplit(opened.url).password is None
            except UsageError as error:
                assert str(error).endswith(".")
        assert asked == []

    @always
    @seed(SEED)
    @given(store_schemes, tails, connection_strings, connection_strings, secrets)
    @example("sqlite:///", "x" * 300, None, None, None)
    @example("cosmos://", "account..x/database", None, None, "YQ==")
    @example("cosmos://", "account/database", None, "AccountEndpoint=http://[;AccountKey=YQ==", None)
    @example("cosmos://", "account:443/database", None, "AccountEndpoint=https://account:x;AccountKey=YQ==", None)
    def test_any_store_is_named_or_refused_in_a_sentence(
        self, scheme: str, tail: str, sql: str | None, cosmos: str | None, secret: str | None
    ) -> None:
        options = StoreOptions(
            wait=0, sql_connection_string=sql, cosmos_connection_string=cosmos, sql_password=secret, cosmos_key=secret
        )
        # A service is named, not asked.
        opening = {"mssql": login_of, "cosmos": account_of}.get(scheme.partition(":")[0].lower())
        with no_network() as asked:
            try:
                if opening is not None:
                    assert urlsplit(opening(scheme + tail, options).url).password is None
                else:
                    open_store(scheme + tail, options=options).close()
            except (UsageError, StoreError) as error:
                assert str(error).endswith((".", "`", ";"))
        assert asked == []


# --- manifests ---

cells = some.one_of(
    some.sampled_from(
        [
            *(
                "a.jpg",
                "sub/b.jpg",
                "./a.jpg",
                "sub/../a.jpg",
                "../outside.jpg",
                "/etc/hostname",
                "link.jpg",
                "circle/x.jpg",
            ),
            *(
                "",
                " ",
                "sub",
                "no.jpg",
                "a.jpg/x",
                "\0",
                "a\0.jpg",
                "x" * 300,
                "x" * 140_000,
                "~",
                "=1+1",
                "train",
                "TEST",
                "val",
            ),
            *('"', '""', "a\nb", "a\rb", ",", "\ufeff", "\u2028", "\x1b[31m"),
        ]
    ),
    some.text(max_size=10),
)
heads = some.lists(some.sampled_from(["path", "split", "view", "condition", "", "loss", "val_x", "path "]), max_size=4)


def as_csv(head: list[str], rows: list[list[str]], quoted: bool, bom: bool) -> bytes:
    if not quoted:
        text = "\n".join(",".join(row) for row in [head, *rows])
    else:
        out = io.StringIO()
        csv.writer(out, quoting=csv.QUOTE_ALL).writerows([head, *rows])
        text = out.getvalue()
    return (b"\xef\xbb\xbf" if bom else b"") + text.encode("utf-8", "surrogatepass")


tables = some.one_of(
    some.builds(as_csv, heads, some.lists(some.lists(cells, max_size=5), max_size=4), some.booleans(), some.booleans()),
    some.builds(
        lambda rows, bom: as_csv(["path", "view", "split"], rows, True, bom),
        some.lists(some.tuples(cells, cells, some.sampled_from(["", "train", "val", "x"])).map(list), max_size=4),
        some.booleans(),
    ),
    some.binary(max_size=200),
)


class TestManifests:
    @always
    @seed(SEED)
    @given(tables)
    @example(b"path,view\n" + b"x" * 300 + b",a\n")
    @example(b"path,view\na\0.jpg,a\n")
    @example(b"path,view\ncircle/x.jpg,a\n")
    def test_any_is_read_or_refused_and_none_leads_outside(self, tmp_path: Path, table: bytes) -> None:
        data = tmp_path / "data"
        if not data.exists():
            (data / "sub").mkdir(parents=True)
            for place in (tmp_path / "outside.jpg", data / "a.jpg", data / "sub/b.jpg"):
                place.touch()
            (data / "link.jpg").symlink_to(tmp_path / "outside.jpg")
            (data / "circle").symlink_to("circle")
        (data / "manifest.csv").write_bytes(table)
        try:
            found = read_catalogue(data)
        except DataError as error:
            assert str(error).endswith(".")
            return
        assert isinstance(found, Catalogue)
        assert {sample.path for sample in found.samples} <= {data.resolve() / "a.jpg", data.resolve() / "sub/b.jpg"}


# --- names ---

FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
PLANTED: Final = [
    *(
        b"=1+1.png",
        b"+1.png",
        b"-1.png",
        b"@SUM(1).png",
        b"\t=1.png",
        b"\r=1.png",
        b"\n=1.png",
        b"a\r=HYPERLINK(1).png",
    ),
    *(b'"=1.png', b'a","=1","b.png', b"a\n=1.png", b"a,b;c.png", b"'.png", b"'; DROP TABLE image; --.png"),
    *(
        b"\x1b[2J\x1b[31mred.png",
        b"\x07\x08\x0d.png",
        b"\xff\xfe.png",
        b"caf\xe9.png",
        b"caf\\xe9.png",
        b"\xc2\x9b31m.png",
    ),
    *(
        b"\xed\xa0\x80.png",
        b"\xe2\x80\xaegnp.exe",
        b"\xe2\x80\xa8line.png",
        b"[red]markup[/red].png",
        b"[/].png",
        b"<img src=x>.png",
    ),
    *(
        b"n" * 255,
        "ä".encode() * 127,
        b" .png",
        b".hidden.png",
        b"%00.png",
        b"%2e%2e%2f.png",
        b"..png",
        b"\\..\\x.png",
        b"a?b#c.png",
    ),
]


def names(many: int) -> list[bytes]:
    """The planted names, and drawn ones of every byte that a file system takes."""
    draw = np.random.default_rng(SEED)
    taken = set(PLANTED)
    while len(taken) < many:
        letters = draw.choice([b"=+-@\r\n\t\x1b,;'\"", bytes(range(1, 256)), b"ab\xc3\xa4\xe2\x80\xae\xff"])
        name = bytes(draw.choice(list(letters), int(draw.choice([1, 3, 20, 200]))).astype(np.uint8)).replace(b"/", b"_")
        if name not in (b".", b".."):
            taken.add(name)
    return sorted(taken)


def quiet(text: str) -> bool:
    """Nothing in it moves a terminal's cursor, colours it, or turns its writing round."""
    return all(letter == "\n" or letter.isprintable() for letter in text)


class TestNames:
    def test_any_name_goes_all_the_way(self, tmp_path: Path, vehclass: Callable[..., Answer]) -> None:
        """Folder, store, exports, screen: a row for each, the same in each, and nothing that runs anywhere."""
        import pyarrow.parquet

        folder = tmp_path / "photos"
        folder.mkdir()
        photo = saved(Image.new("RGB", (20, 20), "red"), "PNG")
        every = names(200)
        for number, name in enumerate(every):
            file = folder / os.fsdecode(name)
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(b"no photo" if number % 4 == 0 else photo)
        here = ("--store", "sqlite:///r.db")
        night = vehclass("classify-batch", "-c", folder, "-m", SAMPLE, *here, "--max-failure-rate", "1")
        assert night.code == 3, night.err
        bad = len(every[::4])
        assert f"{len(every) - bad} classified, {bad} failed" in night.out
        said = [night.out + night.err]
        for what, rows in (("predictions", 3 * (len(every) - bad)), ("probabilities", None), ("failures", bad)):
            for kind in ("csv", "jsonl", "parquet"):
                done = vehclass("results", "export", "--what", what, "--out", f"{what}.{kind}", *here)
                assert done.code == 0, done.err
            raw = (tmp_path / f"{what}.csv").read_bytes().decode("utf-8")
            by_csv = list(csv.DictReader(io.StringIO(raw, newline="")))
            by_json = [json.loads(line) for line in (tmp_path / f"{what}.jsonl").read_text("utf-8").split("\n")[:-1]]
            by_parquet = pyarrow.parquet.read_table(tmp_path / f"{what}.parquet").to_pylist()
            assert rows in (None, len(by_json))
            assert [row["name"] for row in by_json] == [row["name"] for row in by_parquet]
            assert [str(cell(row["name"])) for row in by_json] == [row["name"] for row in by_csv]
            assert [row["image_id"] for row in by_json] == [row["image_id"] for row in by_csv]
            # As a spreadsheet reads it, which ends a row at a lone carriage return, too.
            for row in csv.reader(io.StringIO(raw, newline="")):
                assert not [one for one in row if one.startswith(FORMULA)]
        everything = json.loads(vehclass("results", "list", "--json", "--limit", "9999", *here).out)
        assert len({row["image_id"] for row in everything}) == len(every) - bad
        for words in (
            ("results", "list", "--limit", "9999"),
            ("results", "list", "--failures", "--limit", "9999"),
            ("results", "show", everything[0]["name"]),
            ("results", "show", os.fsdecode(every[-1])),
            ("runs", "show", "last"),
            ("store", "check"),
        ):
            answer = vehclass(*words, *here)
            assert answer.code in (0, 2), answer.err
            said.append(answer.out + answer.err)
        assert [text for text in said if not quiet(text)] == []

    @always
    @seed(SEED)
    @given(some.text(some.characters(), max_size=40))
    def test_any_text_is_quiet_on_a_screen_and_no_formula_in_a_table(self, text: str) -> None:
        assert plain(text.encode("utf-8", "replace").decode()).isprintable()
        assert not str(cell(text)).startswith(FORMULA)
