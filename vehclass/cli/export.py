"""`vehclass model export`: a model for other programs."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vehclass.cli import options, show
from vehclass.errors import UsageError

if TYPE_CHECKING:
    from vehclass.imaging import Pixels
    from vehclass.settings import Settings

MOST_PHOTOS = 512
MOST_BYTES = 256 * 2**20  # of pixels, so that a large input size does not fill the memory


def export(
    model: Annotated[Path, typer.Argument(help="A model folder.", show_default=False)],
    format: Annotated[str, typer.Option("--format", help="openvino, onnx or saved_model.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The folder to write. (default: MODEL-FORMAT)", show_default=False),
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option(
            help=f"A folder of photos to compare the answers on, {MOST_PHOTOS} of them at most. (default: made pictures)",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an export that is there.")] = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Export a model for other programs, once it answers as the trained network does.

    Writes a folder: the network, and export.json with labels, temperatures, thresholds, how photos are prepared,
    and how far the answers were from Keras'. A network that answers otherwise is not written. onnx needs
    pip install 'vehclass[onnx]'.

    Example: vehclass model export models/sample --format onnx --photos uploads
    """
    settings = options.given()
    from vehclass.model.export import require
    from vehclass.model.folder import open_model
    from vehclass.model.publish import publish, refuse_unless_free

    # What is cheap to refuse comes before the photos.
    require(format)
    folder = open_model(model, options.model_key(settings))
    if out is None:
        named = model.resolve() if model.name in ("", "..") else model
        out = named.with_name(f"{named.name}-{format}")
    refuse_unless_free(out, overwrite=overwrite)
    with show.status(quiet=as_json) as status:
        pixels = None if photos is None else _photos(photos, folder.info.input_size, settings, status)
        done = publish(folder, format, out, pixels, overwrite=overwrite, stage=status)
    if as_json:
        show.print_json({"path": str(done.path), **done.about})
        return
    names = [*done.about["files"], "export.json"]
    rows = [(name, show.size((done.path / name).stat().st_size)) for name in names]
    show.say(f"{folder.info.key} is in {done.path}")
    show.table(None, ("file", "size"), rows, right=("size",))
    check = done.about["check"]
    novelty = f", the novelty by {check['novelty_difference']:.1e} of it" if "novelty_difference" in check else ""
    show.say(
        f"Compared with Keras on {check['photos']:,} {'pictures made for it' if photos is None else 'photos'}: no label "
        f"changed; probabilities differ by {check['greatest_difference']:.1e} at most{novelty}."
    )
    if photos is None:
        show.say("Add --photos FOLDER to compare on photos of your own.")


def _photos(root: Path, size: tuple[int, int], settings: "Settings", status: Callable[[str], None]) -> "Pixels":
    """Photos of a folder, evenly over the sorted names, decoded to `size` (width, height): uint8 [n, height, width, 3].

    Raises UsageError when none can be decoded.
    """
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    from vehclass import imaging
    from vehclass.errors import ImageError, ReadError
    from vehclass.records import ImageRef
    from vehclass.sources.folder import FolderSource

    source = FolderSource(root)
    refs = sorted((ref for page in source.pages() for ref in page), key=lambda ref: ref.name)
    most = max(1, min(MOST_PHOTOS, MOST_BYTES // (size[0] * size[1] * 3)))
    chosen = [refs[number * len(refs) // most] for number in range(most)] if len(refs) > most else refs

    def pixels(ref: ImageRef) -> "Pixels | None":
        try:
            if ref.size > settings.max_bytes:
                raise ReadError("too_many_bytes", f"At most {settings.max_bytes} bytes are read.", permanent=True)
            made, _ = imaging.decode(
                source.read(ref), size, formats=settings.image_formats, max_pixels=settings.max_pixels
            )
        except ImageError:
            return None
        return made

    status(f"decoding {len(chosen):,} photos")
    with ThreadPoolExecutor(options.cores()) as pool:
        decoded = [one for one in pool.map(pixels, chosen) if one is not None]
    if not decoded:
        raise UsageError(reason=f"No photo in {root} can be decoded, so there is nothing to compare on.")
    if len(decoded) < len(chosen):
        show.note(
            f"{len(chosen) - len(decoded):,} of {len(chosen):,} files in {root} are no photos that can be decoded"
        )
    return np.stack(decoded)
