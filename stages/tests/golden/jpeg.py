"""Golden photographs of stages/src/data/decode.rs: python stages/tests/golden/jpeg.py (numpy, Pillow 13 with libjpeg-turbo)
writes golden/jpeg/*.jpg, of odd sizes and every way to store colour that the data sets have, and prints the md5 of the
pixels that Pillow decodes."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path(__file__).parent / "jpeg"
FOLDER.mkdir(exist_ok=True)
# name, height, width, quality, chroma subsampling (0: none, 1: half as wide, 2: half as wide and high), progressive
CASES = [("420", 45, 37, 90, 2, False), ("422", 33, 50, 90, 1, False), ("444", 31, 29, 90, 0, False),
         ("progressive", 45, 37, 75, 2, True), ("poor", 40, 47, 20, 2, False), ("grey", 21, 43, 90, None, False)]

for name, height, width, quality, subsampling, progressive in CASES:
    rng = np.random.default_rng(len(name))
    pixels = np.zeros((height, width, 3), np.float32) + rng.uniform(60, 190, 3)
    for n in [3, 7]:
        blobs = Image.fromarray(rng.integers(0, 255, (n, n, 3), np.uint8))
        pixels += np.asarray(blobs.resize((width, height), Image.Resampling.BICUBIC), np.float32) - 128
    pixels += rng.normal(0, 6, pixels.shape)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    path = FOLDER / f"{name}.jpg"
    options = {} if subsampling is None else {"subsampling": subsampling}
    (image if options else image.convert("L")).save(path, quality=quality, progressive=progressive, **options)
    found = np.asarray(Image.open(path))
    shape = (height, width, 1 if found.ndim == 2 else 3)
    print(f'            ("{name}", {shape}, "{hashlib.md5(found.tobytes()).hexdigest()}"),')
