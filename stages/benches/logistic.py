"""Alternates the logistic solver of the theory's stages with scikit-learn's LogisticRegression (lbfgs), both to the same
objective, and prints a table.

python stages/benches/logistic.py [--rounds 3] [--threads 2] [--m 10000]

Equation (8)'s data, n = 3000, d = 100, m random ReLU features, L2 1e-9, ERM. lbfgs is given the loosest
tolerance at which it comes to its best objective, which stays above the optimum; ours is stopped as soon as it is not above that one, and run
to the optimum too. Build first: cargo build --release --workspace.
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


def ours(file, decrement):
    words = [PROGRAM, "synthetic/bench", file, str(n), str(m), str(RIDGE), str(args.threads), str(decrement)]
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
    best = ours(file.name, 1e-10)
    print(f"n = {n}, m = {m}, {args.threads} threads; our objective {best['objective']:.10e}, {best['iterations']} Newton steps")
    fits = []
    for tolerance in (1e-8, 1e-10, 1e-12, 1e-14):
        seconds, value, steps = theirs(tolerance)
        fits.append((value, tolerance))
        print(f"lbfgs, tol {tolerance:g}: {seconds:.1f} s, {steps} steps, objective {value:.10e}, {value / best['objective'] - 1:.1e} above", flush=True)
    value = min(fits)[0]
    tolerance = max(tolerance for reached, tolerance in fits if reached == value)
    decrement = next(d for d in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-10) if ours(file.name, d)["objective"] <= value)
    rounds = []
    for _ in range(args.rounds):
        same = ours(file.name, decrement)
        rounds.append((same["seconds"], theirs(tolerance)[0], ours(file.name, 1e-10)["seconds"]))
        print("  itpipe {0:.2f} s, scikit-learn {1:.2f} s, itpipe to the optimum {2:.2f} s".format(*rounds[-1]), flush=True)
    mine, other, whole = (statistics.median(column) for column in zip(*rounds))
    print(f"to lbfgs's objective (decrement {decrement:g}, {same['iterations']} steps, {same['objective'] / best['objective'] - 1:.1e} above): "
          f"itpipe {mine:.2f} s, scikit-learn {other:.2f} s: {other / mine:.2f} times; to the optimum: {other / whole:.2f} times")
