"""CelebA's preparation (decode, cut the middle 178, resize to 224, normalise) by `stages bench decode` and by Pillow, in
turns, on generated photographs of 178x218, and how far the results are apart.

python stages/benches/decode.py [--images 600] [--threads 2] [--rounds 3]

Needs numpy and pillow. Build first: cargo build --release --workspace. Wall time is right on a quiet machine only.
"""

import argparse
import io
import json
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

PROGRAM = Path(__file__).resolve().parent.parent.parent / "target" / "release" / "stages"
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def photograph(rng):
    """Blobs of all sizes with a little noise: about as many bytes as a photograph of the size."""
    image = np.zeros((218, 178, 3), np.float32) + rng.uniform(60, 190, 3)
    for n in [4, 9, 20, 45]:
        small = Image.fromarray(rng.integers(0, 255, (n, n, 3), np.uint8))
        image += (np.asarray(small.resize((178, 218), Image.BICUBIC), np.float32) - 128) * (8 / n) ** 0.5 * 0.5
    image += rng.normal(0, 4, image.shape)
    out = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def prepare(data):
    image = Image.open(io.BytesIO(data)).convert("RGB")
    left, top = round((178 - 178) / 2), round((218 - 178) / 2)
    image = image.crop((left, top, left + 178, top + 178)).resize((224, 224), Image.BILINEAR)
    return (np.asarray(image, np.float32) / 255 - MEAN) / STD


def main():
    parser = argparse.ArgumentParser()
    for name, default in [("--images", 600), ("--threads", 2), ("--rounds", 3)]:
        parser.add_argument(name, type=int, default=default)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    files = [photograph(rng) for _ in range(args.images)]
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.threads) as pool:
        for i, data in enumerate(files):
            (Path(folder) / f"{i:06}.jpg").write_bytes(data)
        for _ in range(args.rounds):
            words = ["bench", "decode", folder, "--threads", str(args.threads), "--rounds", "1", "--out", f"{folder}/out"]
            line = subprocess.run([PROGRAM, *words], check=True, capture_output=True, text=True).stdout
            ours.append(json.loads(line)["images_per_second"])
            start = time.perf_counter()
            for _ in pool.map(lambda data: prepare(data) is None, files):
                pass
            theirs.append(args.images / (time.perf_counter() - start))
        found = np.fromfile(f"{folder}/out", np.float32).reshape(args.images, 224, 224, 3)
    far = np.abs(found - np.stack([prepare(data) for data in files])) * STD * 255
    ours, theirs = statistics.median(ours), statistics.median(theirs)
    size = sum(map(len, files)) / len(files)
    print(f"{args.images} photographs of {size:.0f} bytes, {args.threads} threads, median of {args.rounds} rounds")
    print(f"ours {ours:.0f} a second, Pillow {PIL.__version__} {theirs:.0f}: {ours / theirs:.2f} times")
    mean = ", ".join(f"{v:.3f}" for v in far.mean((0, 1, 2)))
    print(f"difference in 1/255: at most {far.max():.2f}, mean by channel {mean}")


main()
