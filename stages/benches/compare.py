"""Alternates `stages bench` with the same training step in PyTorch (channels-last, the same threads) and prints a table.

python stages/benches/compare.py [--threads 1,2] [--rounds 3] [--steps 8] [MODEL ...]

MODEL is a name of MODELS. Build first: cargo build --release -p stages. Wall time is right on a quiet machine only; the
processor time a step, in the last columns, is also right on a busy one, but for what the threads wait for each other.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAM = HERE.parent.parent / "target" / "release" / "stages"
# Name: (words of `stages bench`, batch).
MODELS = {
    "resnet32": (["resnet32", "--image", "32", "--channels", "3"], 128),
    "resnet20-grey": (["resnet20", "--image", "28", "--channels", "1"], 128),
    "resnet8-grey": (["resnet8", "--image", "28", "--channels", "1"], 128),
    "bert-base": (["bert-base", "--sequence", "128", "--classes", "3"], 8),
    "minilm": (["minilm", "--sequence", "128", "--classes", "3"], 32),
    "resnet50": (["resnet50", "--image", "224", "--channels", "3", "--classes", "2"], 16),
}


def torch_step(name, threads, steps):
    """The PyTorch side, in a process of its own."""
    sys.path.insert(0, str(HERE.parent / "tests" / "golden"))
    import resource

    import models
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    words, batch = MODELS[name]
    option = dict(zip(words[1::2], map(int, words[2::2])))
    classes = option.get("--classes", 10)
    labels = torch.arange(batch) % classes
    if "--sequence" in option:
        sizes = (768, 12, 12, 3072) if name == "bert-base" else (384, 6, 12, 1536)
        model = models.Bert(30522, *sizes, 512, classes, dropout=0.1)
        words = torch.randint(1000, (batch, option["--sequence"]))
        x = torch.stack([words, torch.zeros_like(words), torch.ones_like(words)], 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.0)
    else:
        channels, image = option["--channels"], option["--image"]
        if name == "resnet50":
            model = models.ResNet(models.Bottleneck, [3, 4, 6, 3], 64, 1, channels, classes)
        else:
            model = models.ResNetCifar(int(words[0][6:]), channels, classes, "A")
        x = torch.randn(batch, channels, image, image).to(memory_format=torch.channels_last)
        model = model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
    times, cpu = [], 0.0
    for step in range(steps + 1):
        start, used = time.perf_counter(), time.process_time()
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        if step:
            times.append((time.perf_counter() - start) * 1e3)
            cpu += (time.process_time() - used) * 1e3 / steps
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    step = statistics.median(times)
    print(json.dumps({"examples_per_second": batch / step * 1e3, "cpu_ms": cpu, "peak_memory_mb": peak}))


def line(command, threads):
    names = "OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"
    environment = dict(os.environ, **{name: str(threads) for name in names})
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def compare(name, threads, rounds, steps):
    words, batch = MODELS[name]
    ours = [str(PROGRAM), "bench", *words, "--batch", str(batch), "--threads", str(threads), "--steps", str(steps)]
    theirs = [sys.executable, __file__, "--torch", name, "--threads", str(threads), "--steps", str(steps)]
    both = [(line(ours, threads), line(theirs, threads)) for _ in range(rounds)]
    cells = []
    for key in ("examples_per_second", "cpu_ms", "peak_memory_mb"):
        a, b = ([pair[side][key] for pair in both] for side in (0, 1))
        cells += [f"{statistics.median(v):.0f} ({min(v):.0f} to {max(v):.0f})" for v in (a, b)]
        cells.append(f"{statistics.median(a) / statistics.median(b):.2f}")
    print(f"| {name} b{batch} | {threads} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--torch", action="store_true", help="run only the PyTorch side, for one model")
    args = parser.parse_args()
    if args.torch:
        torch_step(args.models[0], int(args.threads), args.steps)
        sys.exit()
    print(f"load {os.getloadavg()[0]:.1f}; medians (range) of {args.rounds} alternating rounds of {args.steps} steps\n")
    heads = ["examples/s", "PyTorch", "ratio", "cpu ms a step", "PyTorch", "ratio", "peak MB", "PyTorch", "ratio"]
    print("| model | threads | " + " | ".join(heads) + " |\n" + "|---" * 11 + "|")
    for name in args.models or ["resnet32", "resnet20-grey", "resnet8-grey"]:
        for threads in map(int, args.threads.split(",")):
            compare(name, threads, args.rounds, args.steps)
    print(f"\nload {os.getloadavg()[0]:.1f}")
