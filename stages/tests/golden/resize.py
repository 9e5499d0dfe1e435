"""Golden values of stages/src/data/resize.rs: python stages/tests/golden/resize.py (numpy, Pillow 13; no case for which it
resizes columns first)."""

import hashlib

import numpy as np
from PIL import Image

CASES = [((218, 178), (224, 224), 3), ((178, 178), (224, 224), 3), ((300, 417), (256, 256), 3), ((300, 290), (256, 256), 3),
         ((28, 28), (32, 32), 1), ((31, 1), (7, 5), 3), ((64, 64), (64, 16), 1), ((1, 1), (3, 2), 3)]

for (height, width), (to_height, to_width), channels in CASES:
    i = np.arange(height * width * channels, dtype=np.uint64)
    pixels = ((i * np.uint64(2654435761)) >> np.uint64(7)).astype(np.uint8).reshape(height, width, channels)
    image = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])
    out = np.asarray(image.resize((to_width, to_height), Image.Resampling.BILINEAR))
    print(f'        (({height}, {width}), ({to_height}, {to_width}), {channels}, "{hashlib.md5(out.tobytes()).hexdigest()}"),')
