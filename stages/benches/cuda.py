"""`stages bench --device cuda` beside the same training step in PyTorch, eager and compiled, on one GPU; prints a table.

python stages/benches/cuda.py [--dtype bf16,tf32,f32] [--rounds 3] [--steps 30] [--program PATH] [MODEL ...]

MODEL is a name of MODELS. Needs a GPU, PyTorch for it, and the program of scripts/cuda_build.sh with its libraries on
LD_LIBRARY_PATH. All three sides train on data that lie on the GPU; the host waits for the last step alone. PyTorch runs
channels-last, bf16 by autocast over float32 weights, with its fused optimisers.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAM = HERE.parent.parent / "target" / "cuda" / "release" / "stages"
# Name: (words of `stages bench`, batch).
MODELS = {
    "resnet32": (["resnet32", "--image", "32"], 128),
    "resnet50": (["resnet50", "--image", "224", "--classes", "2"], 128),
    "wide-resnet50": (["wide-resnet50", "--image", "224", "--classes", "2"], 128),
    "bert-base": (["bert-base", "--sequence", "128", "--classes", "3"], 32),
    "bert-large": (["bert-large", "--sequence", "128", "--classes", "3"], 32),
}
SIDES = ["ours", "eager", "compiled"]


def torch_step(name, side, dtype, steps):
    """The PyTorch side, in a process of its own."""
    sys.path.insert(0, str(HERE.parent / "tests" / "golden"))
    import models
    import torch
    import torch.nn.functional as F

    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    words, batch = MODELS[name]
    option = dict(zip(words[1::2], map(int, words[2::2])))
    classes = option.get("--classes", 10)
    if "--sequence" in option:
        sizes = (768, 12, 12, 3072) if name == "bert-base" else (1024, 24, 16, 4096)
        model = models.Bert(30522, *sizes, 512, classes, dropout=0.1).cuda()
        tokens = torch.randint(1000, (batch, option["--sequence"]))
        x = torch.stack([tokens, torch.zeros_like(tokens), torch.ones_like(tokens)], 1).cuda()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.0, fused=True)
    else:
        image = option["--image"]
        if name == "resnet32":
            model = models.ResNetCifar(32, 3, classes, "A")
        else:
            inner = 2 if name.startswith("wide") else 1
            model = models.ResNet(models.Bottleneck, [3, 4, 6, 3], 64, inner, 3, classes)
        model = model.cuda().to(memory_format=torch.channels_last)
        x = torch.randn(batch, 3, image, image).cuda().to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4, fused=True)
    labels = (torch.arange(batch) % classes).cuda()
    run = torch.compile(model) if side == "compiled" else model

    def step():
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=dtype == "bf16"):
            logits = run(x)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    # As many again as ours, which measures its parts before.
    for _ in range(max(steps, 5)):
        step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    speed = batch * steps / (time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() >> 20
    print(json.dumps({"examples_per_second": speed, "gpu_memory_mb": peak, "gpu": torch.cuda.get_device_name()}))


def measure(name, side, dtype, args):
    words, batch = MODELS[name]
    command = [sys.executable, __file__, "--torch", side, "--dtype", dtype, "--steps", str(args.steps), name]
    if side == "ours":
        command = [args.program, "bench", *words, "--batch", str(batch), "--steps", str(args.steps)]
        command += ["--device", "cuda", "--dtype", dtype]
    output = subprocess.run(command, capture_output=True, text=True)
    if output.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{output.stderr}")
    return json.loads(output.stdout.strip().splitlines()[-1])


def main(args):
    heads = [f"{side} {what}" for what in ("examples/s", "MB") for side in SIDES]
    print("| model | dtype | " + " | ".join(heads) + " | ours / eager | ours / compiled |\n" + "|---" * 10 + "|")
    lines = []
    for name in args.models or MODELS:
        for dtype in args.dtype.split(","):
            rounds = [[measure(name, side, dtype, args) for side in SIDES] for _ in range(args.rounds)]
            column = lambda key, side: [line[side][key] for line in rounds]
            speeds = [statistics.median(column("examples_per_second", side)) for side in range(3)]
            ranges = [column("examples_per_second", side) for side in range(3)]
            cells = [f"{s:.0f} ({min(r):.0f} to {max(r):.0f})" for s, r in zip(speeds, ranges)]
            cells += [str(max(column("gpu_memory_mb", side))) for side in range(3)]
            cells += [f"{speeds[0] / other:.2f}" for other in speeds[1:]]
            print(f"| {name} b{MODELS[name][1]} | {dtype} | " + " | ".join(cells) + " |", flush=True)
            lines.append(rounds[-1][0])
    print(f"\n{lines[-1]['gpu']}; medians (range) of {args.rounds} rounds of {args.steps} steps. Our steps' parts, ms:\n")
    for line in lines:
        print(json.dumps({key: line[key] for key in ("model", "dtype", "ms")}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--program", default=str(PROGRAM))
    parser.add_argument("--torch", choices=SIDES[1:], help="run only this side of PyTorch, for one model")
    arguments = parser.parse_args()
    if arguments.torch:
        torch_step(arguments.models[0], arguments.torch, arguments.dtype, arguments.steps)
    else:
        main(arguments)
