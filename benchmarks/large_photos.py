"""What decoding a photo of 12 megapixels costs, by libjpeg-turbo and by our own decoder: `python -m benchmarks.large_photos`.

Draws photos of 4000x3000, without and with a sensor's noise, and encodes them as cameras do. Prints the CPU that
`vehclass.imaging.decode` takes for a network of 224x224, on one core, each way in turn; medians of five.
"""

import io
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.machine import describe
from vehclass import imaging

ROOT = Path(__file__).resolve().parent.parent
SIZE = (224, 224)
PHOTOS, TIMES = 8, 5
KINDS = {
    "smooth, 4:2:0, quality 90": (0, {"quality": 90, "subsampling": "4:2:0"}),
    "noisy, 4:2:0, quality 90": (4, {"quality": 90, "subsampling": "4:2:0"}),
    "noisy, 4:2:2, quality 95": (4, {"quality": 95, "subsampling": "4:2:2"}),
    "noisy, 4:4:4, quality 93": (4, {"quality": 93, "subsampling": "4:4:4"}),
    "noisy, 4:2:0, quality 90, progressive": (4, {"quality": 90, "subsampling": "4:2:0", "progressive": True}),
}


def drawn() -> list[Image.Image]:
    with tempfile.TemporaryDirectory() as folder:
        draw = [sys.executable, ROOT / "scripts/draw_samples.py", folder, "--count", str(PHOTOS), "--size", "4000x3000"]
        subprocess.run([*draw, "--quality", "100"], check=True, stdout=subprocess.DEVNULL)
        return [Image.open(file).convert("RGB") for file in sorted(Path(folder).rglob("*.jpg"))]


def encoded(image: Image.Image, noise: float, options: dict[str, object]) -> bytes:
    """A JPEG of it, each colour of each pixel off by so many grey levels (a standard deviation)."""
    numbers = np.random.default_rng(0)
    pixels = np.asarray(image, np.float32)
    noisy = pixels + numbers.normal(0, noise, pixels.shape).astype(np.float32) if noise else pixels
    out = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(out, "JPEG", **options)
    return out.getvalue()


def cpu_ms(photos: list[bytes]) -> float:
    began = time.process_time()
    for photo in photos:
        imaging.decode(photo, SIZE)
    return 1000 * (time.process_time() - began) / len(photos)


def main() -> None:
    own = imaging.decode_eighth
    if own is None:
        raise SystemExit("vehclass was installed without a C compiler: there is nothing to compare.")
    images = drawn()
    print(f"Measured on {describe()}.\n\n| photos of 4000x3000 | MB | libjpeg-turbo | our decoder |")
    print("| --- | ---: | ---: | ---: |")
    for name, (noise, options) in KINDS.items():
        photos = [encoded(image, noise, options) for image in images]
        took: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(TIMES):
            for ours, found in took.items():
                imaging.decode_eighth = own if ours else None
                found.append(cpu_ms(photos))
        size = sum(map(len, photos)) / len(photos) / 1e6
        without, with_it = (statistics.median(found) for found in took.values())
        print(f"| {name} | {size:.1f} | {without:.1f} | {with_it:.1f} |", flush=True)


if __name__ == "__main__":
    main()
