"""Alternates the logistic solver of the theory's stages with scikit-learn's LogisticRegression (lbfgs), both to the same
objective, and prints a table.

python stages/benches/logistic.py [--rounds 3] [--threads 2] [--m 10000]

Equation (8)'s data, n = 3000, d = 100, m random ReLU features, L2 1e-9, ERM. lbfgs is given the tolerance (of a decreasing
series) at which its objective is within a relative 1e-3 of the optimum; where none of them reaches it, its best one is
taken, in its favour. Build first: cargo build --release --workspace.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--m", type=int, default=10000)
parser.add_argument("--n", type=int, default=3000)
args = parser.parse_args()
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = str(args.threads)

import numpy as np
from sklearn.linear_model import LogisticRegression

PROGRAM = Path(__file__).resolve().parents[2] / "target" / "release" / "stages"
RIDGE = 1e-9
n, m, d = args.n, args.m, 100
rng = np.random.default_rng(0)
y = np.where(np.arange(n) % 2 == 0, 1.0, -1.0)
a = np.where(np.arange(n) < 0.9 * n, y, -y)
x = np.hstack([y[:, None] + 10 * rng.normal(size=(n, d)), a[:, None] + rng.normal(size=(n, d))])
w = rng.normal(size=(2 * d, m))
x = np.maximum(0, x @ (w / np.linalg.norm(w, axis=0)))


def objective(w):
    return np.logaddexp(0, -y * (x @ w)).mean() + RIDGE / 2 * w @ w


def ours(file):
    words = [PROGRAM, "synthetic/bench", file, str(n), str(m), str(RIDGE), str(args.threads)]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def theirs(tolerance):
    model = LogisticRegression(C=1 / (n * RIDGE), fit_intercept=False, solver="lbfgs", tol=tolerance, max_iter=100_000)
    start = time.perf_counter()
    model.fit(x, y)
    return time.perf_counter() - start, objective(model.coef_[0]), int(model.n_iter_[0])


with tempfile.NamedTemporaryFile() as file:
    x.tofile(file)
    y.tofile(file)
    file.flush()
    best = ours(file.name)
    print(f"n = {n}, m = {m}, {args.threads} threads; our objective {best['objective']:.10e}, {best['iterations']} Newton steps")
    for tolerance in (1e-6, 1e-8, 1e-10, 1e-12):
        seconds, value, steps = theirs(tolerance)
        print(f"lbfgs, tol {tolerance:g}: {seconds:.1f} s, {steps} steps, objective {value:.10e}, {value / best['objective'] - 1:.1e} above", flush=True)
        if value <= best["objective"] * (1 + 1e-3):
            break
    rounds = []
    for _ in range(args.rounds):
        rounds.append((ours(file.name)["seconds"], theirs(tolerance)[0]))
        print(f"  itpipe {rounds[-1][0]:.1f} s, scikit-learn {rounds[-1][1]:.1f} s", flush=True)
    mine, other = (statistics.median(column) for column in zip(*rounds))
    print(f"median: itpipe {mine:.1f} s, scikit-learn {other:.1f} s: {other / mine:.1f} times")
