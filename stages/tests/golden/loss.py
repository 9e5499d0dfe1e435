"""Writes loss.json: every loss and its gradient with respect to the logits, by PyTorch in float64.

Sources of the formulas: group DRO: kohpangwei/group_DRO loss.py (robust_step_size, adj); LDAM and focal: kaidic/LDAM-DRW
losses.py; VS: orparask/VS-Loss losses.py; the polynomial tail for two classes: Wang et al. 2022, equation 3.
"""
import json
import pathlib

import torch
import torch.nn.functional as F

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
N, K = 7, 4
LABELS = torch.tensor([0, 1, 2, 3, 0, 0, 2])
GROUPS = torch.tensor([0, 1, 0, 1, 1, 0, 0])
COUNTS = torch.tensor([60.0, 30.0, 6.0, 3.0])
GROUP_COUNTS = torch.tensor([80.0, 19.0])
LOGITS = torch.randn(N, K) * 3
TWO = torch.randn(N, 2) * 2
TWO_LABELS = torch.tensor([0, 1, 1, 0, 1, 0, 1])


def temperatures(gamma):
    return (COUNTS.max() / COUNTS) ** gamma


def group_dro(z, q):
    losses = F.cross_entropy(z, LABELS, reduction="none")
    mean = torch.stack([losses[GROUPS == g].mean() for g in (0, 1)])
    q = q * torch.exp(0.01 * (mean.detach() + 2.0 / GROUP_COUNTS.sqrt()))
    q = q / q.sum()
    return (q * mean).sum(), q


def ldam(z):
    margins = 1 / COUNTS.sqrt().sqrt()
    margins = margins * (0.5 / margins.max())
    taken = F.one_hot(LABELS, K) * margins
    return F.cross_entropy(30 * (z - taken), LABELS)


def focal(z):
    ce = F.cross_entropy(z, LABELS, reduction="none")
    return ((1 - torch.exp(-ce)) ** 2.0 * ce).mean()


def tail(z):
    alpha, beta = 2.0, 1.0
    margin = (z[:, 1] - z[:, 0]) * (2 * TWO_LABELS - 1)
    left = F.softplus(-margin) / F.softplus(torch.tensor(-beta))
    right = (torch.clamp(margin, min=beta) - (beta - 1)) ** -alpha
    return torch.where(margin < beta, left, right).mean()


WEIGHTS = GROUP_COUNTS.sum() / (2 * GROUP_COUNTS)
T = temperatures(0.5)
PRIOR = COUNTS / COUNTS.sum()
cases = {
    "erm": (lambda z: F.cross_entropy(z, LABELS), LOGITS),
    "iw": (lambda z: (WEIGHTS[GROUPS] * F.cross_entropy(z, LABELS, reduction="none")).sum() / N, LOGITS),
    "group-dro": (lambda z: group_dro(z, torch.tensor([0.5, 0.5]))[0], LOGITS),
    "it-features": (lambda z: F.cross_entropy(z / T[LABELS][:, None], LABELS), LOGITS),
    "it-classifier": (lambda z: F.cross_entropy(z / T, LABELS), LOGITS),
    "it-group": (lambda z: F.cross_entropy(z / torch.tensor([0.01, 1.0])[GROUPS][:, None], LABELS), LOGITS),
    "logit-adjustment": (lambda z: F.cross_entropy(z + 1.5 * PRIOR.log(), LABELS), LOGITS),
    "vs": (lambda z: F.cross_entropy(z / temperatures(0.3) + 1.5 * PRIOR.log(), LABELS), LOGITS),
    "ldam": (ldam, LOGITS),
    "focal": (focal, LOGITS),
    "polynomial-tailed": (tail, TWO),
}
out = {
    "logits": LOGITS.tolist(),
    "two_logits": TWO.tolist(),
    "labels": LABELS.tolist(),
    "two_labels": TWO_LABELS.tolist(),
    "groups": GROUPS.tolist(),
    "counts": [int(c) for c in COUNTS],
    "group_counts": [int(c) for c in GROUP_COUNTS],
    "losses": {},
}
for name, (function, z) in cases.items():
    z = z.clone().requires_grad_()
    loss = function(z)
    loss.backward()
    out["losses"][name] = {"loss": loss.item(), "gradient": z.grad.tolist()}
q, path = torch.tensor([0.5, 0.5]), []
for step in range(5):
    loss, q = group_dro(LOGITS * (step + 1), q)
    path.append({"loss": loss.item(), "weights": q.tolist()})
out["group_dro_steps"] = path
pathlib.Path(__file__).with_name("loss.json").write_text(json.dumps(out, indent=1) + "\n")
