"""Writes tests/data/generated: tiny files with exactly the schema and the key names of the Hub's CelebA, Waterbirds,
MultiNLI, ResNet-50, WideResNet-50-2 and BERT. Everything in them is made up here from fixed seeds: no picture, no sentence
and no weight of the real ones is in them, and a number computed from them says nothing about the paper.

    pip install numpy pillow pyarrow safetensors
    python scripts/generate_data.py
"""
import io, random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from safetensors.numpy import save_file

ROOT = Path(__file__).parent.parent / "tests/data/generated"

CELEBA = """5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair
Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male
Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks Sideburns
Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace Wearing_Necktie Young""".split()


def jpeg(width, height, top, bottom, rng):
    """A vertical gradient between two colours with a soft bright spot: the upper half says y, the lower half a."""
    y, x = np.mgrid[0:height, 0:width]
    share = (y / height)[..., None]
    image = np.asarray(top) * (1 - share) + np.asarray(bottom) * share
    cx, cy = rng.uniform(0.3, 0.7, 2)
    image = image + 60 * np.exp(-(((x / width - cx) ** 2 + (y / height - cy) ** 2) / 0.02))[..., None]
    bytes_ = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(bytes_, "JPEG", quality=40)
    return bytes_.getvalue()


def pictures(counts, size, rng):
    """One (bytes, y, a) for each example of each group y * 2 + a, in a fixed random order."""
    rows = []
    for group, n in enumerate(counts):
        y, a = divmod(group, 2)
        top = (200, 170, 80) if y else (60, 50, 70)
        bottom = (40, 80, 190) if a else (70, 150, 60)
        for _ in range(n):
            shade = rng.integers(-25, 25, 3)
            width, height = size(rng)
            rows.append((jpeg(width, height, np.add(top, shade), np.add(bottom, shade), rng), y, a))
    rng.shuffle(rows)
    return rows


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path, columns):
    path = ROOT / "datasets" / path
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, compression="snappy")


def image_column(rows):
    return pa.array([{"bytes": bytes(r[0]), "path": None} for r in rows], IMAGE)


def celeba():
    rng = np.random.default_rng(1)
    files = {"train": [12, 10, 6, 2], "validation": [4, 4, 3, 2], "test": [6, 6, 4, 3]}
    for split, counts in files.items():
        rows = pictures(counts, lambda _: (178, 218), rng)
        shards = 3 if split == "train" else 1
        for shard in range(shards):
            part = rows[shard * len(rows) // shards : (shard + 1) * len(rows) // shards]
            columns = {"image": image_column(part)}
            for name in CELEBA:
                values = {"Blond_Hair": [2 * int(r[1]) - 1 for r in part], "Male": [2 * int(r[2]) - 1 for r in part]}
                columns[name] = pa.array(values.get(name, [-1] * len(part)), pa.int64())
            columns["prompt_string"] = pa.array(["generated"] * len(part))
            write(f"tpremoli/CelebA-attrs/data/{split}-{shard:05}-of-{shards:05}.parquet", columns)


def waterbirds():
    rng = np.random.default_rng(2)
    files = {"train": [14, 3, 2, 8], "validation": [4, 4, 2, 2], "test": [5, 5, 3, 3]}
    for split, counts in files.items():
        rows = pictures(counts, lambda r: (int(r.integers(120, 180)), int(r.integers(100, 160))), rng)
        columns = {
            "image": image_column(rows),
            "label": pa.array([int(r[1]) for r in rows], pa.int64()),
            "place": pa.array([int(r[2]) for r in rows], pa.int64()),
            "bird": pa.array([int(rng.integers(0, 200)) for _ in rows], pa.int64()),
        }
        write(f"grodino/waterbirds/default/{split}/0000.parquet", columns)


NOUNS = "cat dog bird man woman child king river house car tree book".split()
VERBS = "sleeps runs sings reads falls stands works".split()
OPPOSITE = dict(zip(VERBS, "wakes walks whispers writes rises sits rests".split()))
NEGATIONS = ["no", "nobody", "never", "nothing"]
# In group DRO's order: contradiction, entailment, neutral; without and with a negation.
PAIRS = {0: [18, 6, 18, 2, 18, 2], 1: [5, 3, 5, 2, 5, 2], 2: [6, 4, 6, 2, 6, 2]}


def multinli():
    rng = random.Random(3)
    rows = []
    for split, counts in PAIRS.items():
        for group, n in enumerate(counts):
            label, negation = divmod(group, 2)
            for _ in range(n):
                noun, verb = rng.choice(NOUNS), rng.choice(VERBS)
                premise = f"The {noun} {verb} near the {rng.choice(NOUNS)}."
                other = rng.choice([w for w in NOUNS if w != noun])
                hypothesis = [f"The {noun} {OPPOSITE[verb]}", f"The {noun} {verb}", f"The {other} {rng.choice(VERBS)}"][label]
                hypothesis += f", {rng.choice(NEGATIONS)} doubt." if negation else "."
                rows.append((premise, hypothesis, label, negation, split))
    rng.shuffle(rows)
    # The Hub: 0 entailment, 1 neutral, 2 contradiction.
    hub = {0: 2, 1: 0, 2: 1}
    cuts = [0, len(rows) - 30, len(rows) - 15, len(rows)]
    for name, a, b in zip(["train", "validation_matched", "validation_mismatched"], cuts, cuts[1:]):
        part = rows[a:b]
        text = lambda values: pa.array(list(values), pa.string())
        write(f"nyu-mll/multi_nli/data/{name}-00000-of-00001.parquet", {
            "promptID": pa.array(range(a, b), pa.int32()),
            "pairID": text(f"{i}g" for i in range(a, b)),
            "premise": text(r[0] for r in part),
            "premise_binary_parse": text("" for _ in part),
            "premise_parse": text("" for _ in part),
            "hypothesis": text(r[1] for r in part),
            "hypothesis_binary_parse": text("" for _ in part),
            "hypothesis_parse": text("" for _ in part),
            "genre": text("generated" for _ in part),
            "label": pa.array([hub[r[2]] for r in part], pa.int64()),
        })
    lines = [",gold_label,sentence2_has_negation,split"] + [f"{i},{r[2]},{r[3]},{r[4]}" for i, r in enumerate(rows)]
    (ROOT / "datasets/nyu-mll/multi_nli/metadata_random.csv").write_text("\n".join(lines) + "\n")


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "the", "near", "doubt", *NOUNS, *VERBS, *OPPOSITE.values(),
         *NEGATIONS, *"abcdefghijklmnopqrstuvwxyz", *[f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"]]


class Weights(dict):
    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def normal(self, name, shape, deviation):
        self[name] = (self.rng.standard_normal(shape) * deviation).astype(np.float32)

    def constant(self, name, shape, value):
        self[name] = np.full(shape, value, np.float32)

    def conv(self, name, outputs, inputs, kernel):
        self.normal(f"{name}.weight", (outputs, inputs, kernel, kernel), (2 / (outputs * kernel**2)) ** 0.5)

    def norm(self, name, n):
        for part, value in [("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)]:
            self.constant(f"{name}.{part}", (n,), value)
        self[f"{name}.num_batches_tracked"] = np.array(0, np.int64)

    def linear(self, name, outputs, inputs, deviation=0.02):
        self.normal(f"{name}.weight", (outputs, inputs), deviation)
        self.constant(f"{name}.bias", (outputs,), 0)

    def save(self, repo):
        path = ROOT / "models" / repo / "model.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(self, path, metadata={"format": "pt"})


def resnet(repo, width, inner, seed):
    """torchvision's names; `inner` is 1 for ResNet-50 and 2 for WideResNet-50-2. Ten classes instead of a thousand."""
    w = Weights(seed)
    w.conv("conv1", width, 3, 7)
    w.norm("bn1", width)
    inputs = width
    for stage, blocks in enumerate([3, 4, 6, 3]):
        planes = width * 2**stage
        for i in range(blocks):
            name = f"layer{stage + 1}.{i}"
            for j, (outputs, from_, kernel) in enumerate(
                [(planes * inner, inputs, 1), (planes * inner, planes * inner, 3), (planes * 4, planes * inner, 1)], 1
            ):
                w.conv(f"{name}.conv{j}", outputs, from_, kernel)
                w.norm(f"{name}.bn{j}", outputs)
            if i == 0:
                w.conv(f"{name}.downsample.0", planes * 4, inputs, 1)
                w.norm(f"{name}.downsample.1", planes * 4)
            inputs = planes * 4
    w.linear("fc", 10, inputs)
    w.save(repo)


def bert(repo, hidden, layers, intermediate, positions, seed):
    """The names of the Hub's bert-*-uncased, pretraining heads and gamma/beta included."""
    w = Weights(seed)
    norm = lambda name: (w.constant(f"{name}.LayerNorm.gamma", (hidden,), 1), w.constant(f"{name}.LayerNorm.beta", (hidden,), 0))
    for name, n in [("word", len(WORDS)), ("position", positions), ("token_type", 2)]:
        w.normal(f"bert.embeddings.{name}_embeddings.weight", (n, hidden), 0.02)
    norm("bert.embeddings")
    for i in range(layers):
        layer = f"bert.encoder.layer.{i}"
        for name in ["query", "key", "value"]:
            w.linear(f"{layer}.attention.self.{name}", hidden, hidden)
        w.linear(f"{layer}.attention.output.dense", hidden, hidden)
        norm(f"{layer}.attention.output")
        w.linear(f"{layer}.intermediate.dense", intermediate, hidden)
        w.linear(f"{layer}.output.dense", hidden, intermediate)
        norm(f"{layer}.output")
    w.linear("bert.pooler.dense", hidden, hidden)
    w.constant("cls.predictions.bias", (len(WORDS),), 0)
    w.linear("cls.predictions.transform.dense", hidden, hidden)
    norm("cls.predictions.transform")
    w.linear("cls.seq_relationship", 2, hidden)
    w.save(repo)
    (ROOT / "models" / repo / "vocab.txt").write_text("\n".join(WORDS) + "\n")


celeba()
waterbirds()
multinli()
resnet("timm/resnet50.tv_in1k", 2, 1, 4)
resnet("timm/wide_resnet50_2.tv_in1k", 2, 2, 5)
bert("google-bert/bert-base-uncased", 16, 2, 32, 64, 6)
bert("google-bert/bert-large-uncased", 24, 3, 48, 64, 7)
