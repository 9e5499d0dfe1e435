"""Trains ResNet-20 on real Fashion-MNIST with the same short recipe in PyTorch and in `stages train`, three seeds each,
one thread, and compares the test accuracies. Not a test: it takes some minutes and the whole data set.

python stages/tests/golden/recipe.py MIRROR               ours alone, against PyTorch's accuracies in recipe.json
python stages/tests/golden/recipe.py MIRROR --pytorch     PyTorch's too; writes recipe.json
python stages/tests/golden/recipe.py MIRROR --forms       ours with direct convolutions against ours by Winograd's algorithm

MIRROR has datasets/zalando-datasets/fashion_mnist; the program is target/release/stages.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

EPOCHS, BATCH, RATE, MILESTONE, SEEDS = 8, 64, 0.1, 6, (0, 1, 2)
GOLDEN = Path(__file__).resolve().parent / "recipe.json"
STAGES = GOLDEN.parents[3] / "target" / "release" / "stages"


def kaiming(model):
    """The initialisation of the reference code, which `head: kaiming` asks of ours."""
    import torch

    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            torch.nn.init.kaiming_normal_(module.weight)


def pytorch(arrays, indices, mean, std, seed):
    import torch
    import torch.nn.functional as F
    from models import ResNetCifar

    torch.manual_seed(seed)
    pixels = lambda rows: ((arrays["image"][rows].permute(0, 3, 1, 2).float() / 255) - mean) / std
    train, test = indices["train"].long(), indices["test"].long()
    x, y = pixels(train), arrays["label"][train].long()
    model = ResNetCifar(20, x.shape[1], 10, "A").to(memory_format=torch.channels_last)
    kaiming(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=2e-4)
    for epoch in range(EPOCHS):
        optimizer.param_groups[0]["lr"] = RATE if epoch < MILESTONE else RATE / 10
        order = torch.randperm(len(train))
        for at in order.split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[at].contiguous(memory_format=torch.channels_last)), y[at]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        right = sum((model(pixels(rows)).argmax(1) == arrays["label"][rows].long()).sum() for rows in test.split(500))
    return right.item() / len(test)


def stage(word, params, inputs, folder, form=""):
    folder.mkdir(parents=True)
    job = {"version": 1, "params": params, "inputs": inputs, "out": "out", "scratch": "scratch", "threads": 1}
    (folder / "job.json").write_text(json.dumps(job))
    subprocess.run([STAGES, word, folder / "job.json"], check=True, stdout=subprocess.DEVNULL, env=dict(os.environ, ITPIPE_CONVOLUTION=form))
    return str(folder / "out")


def ours(folders, work, seed, form=""):
    params = {
        "model": {"family": "resnet-cifar", "depth": 20, "shortcut": "A", "head": "kaiming"},
        "method": "erm",
        "epochs": EPOCHS,
        "batch": BATCH,
        "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 2e-4},
        "schedule": {"name": "step", "rate": RATE, "milestones": [MILESTONE], "rates": [RATE / 10]},
        "seed": seed,
    }
    weights = stage("train", params, folders, work / f"train-{seed}{form}", form)
    out = stage("evaluate", {}, {"weights": weights, **folders}, work / f"evaluate-{seed}{form}", form)
    return json.loads((Path(out) / "metrics.json").read_text())["average_accuracy"]


def told(name, values):
    print(f"{name}: {', '.join(f'{v:.4f}' for v in values)}; mean {statistics.mean(values):.4f}", flush=True)
    return values


def main(mirror, work):
    files = mirror / "datasets/zalando-datasets/fashion_mnist"
    form = {"dataset": "fashion-mnist", "variant": "mirror", "exact": True, "note": ""}
    arrays = stage("prepare", form, {"files": str(files)}, work / "arrays")
    rows = {"scheme": "step", "ratio": 1, "majority": "first-half", "per_class": 200, "validation_per_class": 100, "seed": 0}
    indices = stage("subsample", rows, {"data": arrays}, work / "indices")
    folders = {"data": arrays, "indices": indices}
    if "--forms" in sys.argv:
        runs = [(seed, form) for form in ("direct", "winograd") for seed in SEEDS]
        with ThreadPoolExecutor(2) as pool:
            all = list(pool.map(lambda run: ours(folders, work, *run), runs))
        our, theirs = told("direct", all[: len(SEEDS)]), told("Winograd", all[len(SEEDS) :])
    else:
        our = told("ours", [ours(folders, work, seed) for seed in SEEDS])
        if "--pytorch" in sys.argv:
            import torch
            from safetensors.torch import load_file

            meta = json.loads((Path(arrays) / "meta.json").read_text())
            tensors = load_file(Path(arrays) / "examples.safetensors"), load_file(Path(indices) / "indices.safetensors")
            torch.set_num_threads(1)
            theirs = [pytorch(*tensors, meta["mean"][0], meta["std"][0], seed) for seed in SEEDS]
            recipe = {"epochs": EPOCHS, "batch": BATCH, "rate": RATE, "milestone": MILESTONE, "seeds": SEEDS, "per_class": 200}
            GOLDEN.write_text(json.dumps({"recipe": recipe, "pytorch": theirs, "ours when it was made": our}, indent=1) + "\n")
        theirs = told("PyTorch", json.loads(GOLDEN.read_text())["pytorch"])
    # Two draws of three seeds each differ by less than the larger spread unless something is wrong.
    spread = max(max(v) - min(v) for v in (our, theirs))
    difference = statistics.mean(our) - statistics.mean(theirs)
    print(f"difference of the means {difference:+.4f}, spread of the seeds {spread:.4f}")
    sys.exit(abs(difference) > spread)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(sys.argv[1]).resolve(), Path(folder))
