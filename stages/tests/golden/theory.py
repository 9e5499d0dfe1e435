"""Golden values of the theory's numerics, from independent programs: theory.json.

python stages/tests/golden/theory.py      (numpy, scipy, scikit-learn, cvxpy with Clarabel's semidefinite cone)
"""

import json
from pathlib import Path

import cvxpy as cp
import numpy as np
import scipy
import sklearn
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

rng = np.random.default_rng(8)
out = {"programs": {"numpy": np.__version__, "scipy": scipy.__version__, "sklearn": sklearn.__version__, "cvxpy": cp.__version__}}


def rounded(a, digits=None):
    return np.asarray(a, dtype=float).tolist()


# Cost-sensitive hard-margin separators: min |w|^2 / 2, y x.w >= m; fewer and more features than examples.
out["separators"] = []
for n, d, minority_margin in [(24, 3, 4.0), (24, 3, 1.0), (20, 40, 8.0)]:
    y = np.where(np.arange(n) % 2 == 0, 1.0, -1.0)
    x = rng.normal(size=(n, d))
    x[:, 0] = y * (2.0 + np.abs(x[:, 0]))
    m = np.where(np.arange(n) < 2 * n // 3, 1.0, minority_margin)
    w = cp.Variable(d)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(w) / 2), [cp.multiply(y, x @ w) >= m])
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-13, tol_gap_rel=1e-13, tol_feas=1e-13)
    out["separators"].append({"x": rounded(x), "y": rounded(y), "margins": rounded(m), "w": rounded(w.value)})

# Logistic optima. scikit-learn's newton-cholesky at L2 1e-4: C = 1 / (n ridge); temperatures scale rows.
out["logistic"] = []
for n, m in [(60, 12), (30, 80)]:
    x = rng.normal(size=(n, m))
    y = np.where(rng.random(n) < 0.4, 1.0, -1.0)
    t = np.where(np.arange(n) < n // 2, 1.0, 4.0)
    weights = rng.random(n) + 0.5
    weights /= weights.mean()
    ridge = 1e-4
    model = LogisticRegression(C=1 / (n * ridge), fit_intercept=False, solver="newton-cholesky", tol=1e-14, max_iter=10000)
    model.fit(x / t[:, None], y, sample_weight=weights)
    out["logistic"].append({"x": rounded(x), "scales": rounded(y / t), "weights": rounded(weights / n), "ridge": ridge, "w": rounded(model.coef_[0])})

# At L2 1e-9, separable: the objective, by SciPy's trust-region Newton with the exact Hessian, ridge continued downwards.
out["objective"] = []
for n, m in [(60, 12), (30, 80)]:
    x = rng.normal(size=(n, m))
    y = np.where(rng.random(n) < 0.4, 1.0, -1.0)
    if m < n:
        x[:, 0] = y * np.abs(x[:, 0]) + 0.1 * y
    s = y / np.where(np.arange(n) < n // 2, 1.0, 4.0)
    w = np.zeros(m)
    for ridge in 10.0 ** -np.arange(2, 10):
        value = lambda w: np.logaddexp(0, -s * (x @ w)).mean() + ridge / 2 * w @ w
        slope = lambda w: -x.T @ (s * expit(-s * (x @ w))) / n + ridge * w
        bend = lambda w: (x.T * (s**2 * expit(s * (x @ w)) * expit(-s * (x @ w)) / n)) @ x + ridge * np.eye(m)
        for _ in range(500):
            step = np.linalg.solve(bend(w), slope(w))
            length = 1.0
            while value(w - length * step) > value(w) - 1e-4 * length * (slope(w) @ step) and length > 1e-12:
                length /= 2
            w = w - length * step
        w = minimize(value, w, jac=slope, hess=bend, method="trust-exact", options={"gtol": 1e-14, "maxiter": 500}).x
    out["objective"].append({"x": rounded(x), "scales": rounded(s), "ridge": 1e-9, "value": value(w), "gradient": float(np.linalg.norm(slope(w)))})

# The layer-peeled problems as semidefinite programmes in the Gram matrix of [W; H~], K classes, no symmetry used.
out["peeled"] = []
K, half = 10, 5
for placement in ["vanilla", "it-features", "it-classifier"]:
    for R in [1.0, 10.0, 100.0, 10000.0]:
        n = np.array([R] * half + [1.0] * half)
        G = cp.Variable((2 * K, 2 * K), PSD=True)
        Z = G[:K, K:]
        rules = []
        for k in range(K):
            for j in range(K):
                if j == k:
                    continue
                if placement == "vanilla":
                    rules.append(Z[k, k] - Z[j, k] >= np.sqrt(n[k]))
                elif placement == "it-features":
                    rules.append(Z[k, k] - Z[j, k] >= 1)
                else:
                    rules.append(Z[k, k] - np.sqrt(n[j] / n[k]) * Z[j, k] >= 1)
        problem = cp.Problem(cp.Minimize(cp.trace(G) / 2), rules)
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11, max_iter=500)
        g = G.value

        def cosine(i, j):
            return g[i, j] / np.sqrt(g[i, i] * g[j, j])

        out["peeled"].append({"placement": placement, "ratio": R, "value": problem.value,
                              "majority": cosine(0, 1), "minority": cosine(half, half + 1), "between": cosine(0, half),
                              "norms": np.sqrt(g[half, half] / g[0, 0]), "features_minority": cosine(K + half, K + half + 1)})

# The Gaussian integrals (39): E (a - b Z)_+^2 and E (a - b Z)_+.
out["integrals"] = []
for a, b in [(1.0, 0.5), (-0.7, 1.3), (3.0, 2.0), (0.0, 1.0), (-4.0, 1.0)]:
    density = lambda z: np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    one = [quad(lambda z: (a - b * z) ** power * density(z), -40, a / b, epsabs=1e-15, epsrel=1e-13, points=[min(0, a / b)], limit=500)[0] for power in (2, 1)]
    out["integrals"].append({"a": a, "b": b, "square": one[0], "first": one[1]})

# The population model's optimum, by SciPy over both scalars.
out["population"] = []
for p, lam, price in [(0.9, 1.0, 3.0), (0.9, 4.0, 3.0), (0.95, 10.0, 50.0)]:
    cm, cs, sm, ss = 1.0, 1.0, 2.0, 0.2

    def square(v):
        sd = np.hypot(v[0] * cs, v[1] * ss)
        def h(a):
            t = a / sd
            return (a * a + sd * sd) * scipy.stats.norm.cdf(t) + a * sd * scipy.stats.norm.pdf(t)
        return v @ v + price * (p * h(1 - v[0] * cm - v[1] * sm) + (1 - p) * h(lam - v[0] * cm + v[1] * sm))

    best = min((minimize(square, start, method="Nelder-Mead", options={"xatol": 1e-12, "fatol": 1e-15, "maxiter": 20000}) for start in ([0.5, 0.1], [0.1, 0.5])), key=lambda r: r.fun)
    out["population"].append({"p": p, "lambda": lam, "price": price, "square": best.fun, "core": best.x[0], "spurious": best.x[1]})

Path(__file__).with_name("theory.json").write_text(json.dumps(out) + "\n")
