"""Writes optim.json: parameters after each of six steps from given gradients, by PyTorch in float32."""
import json
import pathlib

import torch

torch.manual_seed(0)
SHAPES = {"a.weight": (3, 4), "a.bias": (3,)}
START = {name: torch.randn(shape) for name, shape in SHAPES.items()}
GRADIENTS = [{name: torch.randn(shape) * 0.7 for name, shape in SHAPES.items()} for _ in range(6)]
RATES = [0.1, 0.1, 0.1, 0.03, 0.03, 0.001]


def run(make, clip=None):
    parameters = {name: torch.nn.Parameter(value.clone()) for name, value in START.items()}
    optimizer = make(parameters)
    factors = [group["lr"] for group in optimizer.param_groups]
    path = []
    for rate, gradients in zip(RATES, GRADIENTS):
        for group, factor in zip(optimizer.param_groups, factors):
            group["lr"] = rate * factor
        for name, p in parameters.items():
            p.grad = gradients[name].clone()
        if clip:
            torch.nn.utils.clip_grad_norm_(parameters.values(), clip)
        optimizer.step()
        path.append({name: p.detach().flatten().tolist() for name, p in parameters.items()})
    return path


def plain(kind, **options):
    return lambda p: kind(p.values(), lr=1.0, foreach=False, **options)


def grouped(kind, **options):
    return lambda p: kind(
        [
            {"params": [p["a.bias"]], "weight_decay": 0.0, "lr": 3.0},
            {"params": [p["a.weight"]]},
        ],
        lr=1.0,
        foreach=False,
        **options,
    )


SGD, ADAMW = torch.optim.SGD, torch.optim.AdamW
GROUP = [{"names": ["bias"], "weight_decay": 0.0, "rate_factor": 3.0}]
cases = [
    ({"name": "sgd"}, run(plain(SGD))),
    ({"name": "sgd", "weight_decay": 0.1}, run(plain(SGD, weight_decay=0.1))),
    ({"name": "sgd", "momentum": 0.9, "weight_decay": 2e-4}, run(plain(SGD, momentum=0.9, weight_decay=2e-4))),
    ({"name": "sgd", "momentum": 0.9, "weight_decay": 1.0}, run(plain(SGD, momentum=0.9, weight_decay=1.0))),
    (
        {"name": "sgd", "momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
        run(plain(SGD, momentum=0.9, weight_decay=0.1, nesterov=True)),
    ),
    (
        {"name": "sgd", "momentum": 0.9, "weight_decay": 0.1, "groups": GROUP},
        run(grouped(SGD, momentum=0.9, weight_decay=0.1)),
    ),
    ({"name": "adamw", "weight_decay": 0.01}, run(plain(ADAMW, weight_decay=0.01))),
    ({"name": "adamw", "weight_decay": 0.1, "groups": GROUP}, run(grouped(ADAMW, weight_decay=0.1))),
    (
        {"name": "adamw", "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3},
        run(plain(ADAMW, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.0)),
    ),
]
flat = lambda values: {name: value.flatten().tolist() for name, value in values.items()}
out = {
    "shapes": SHAPES,
    "start": flat(START),
    "gradients": [flat(g) for g in GRADIENTS],
    "rates": RATES,
    "cases": [{"params": params, "clip": None, "steps": steps} for params, steps in cases],
}
out["cases"].append(
    {
        "params": {"name": "sgd", "momentum": 0.9},
        "clip": 1.0,
        "steps": run(plain(SGD, momentum=0.9), clip=1.0),
    }
)
out["norms"] = [float(torch.cat([v.flatten() for v in g.values()]).double().norm()) for g in GRADIENTS]
pathlib.Path(__file__).with_name("optim.json").write_text(json.dumps(out) + "\n")
