"""Golden values of stages/src/metrics.rs: python stages/tests/golden/metrics.py (scikit-learn 1.x, numpy)."""

import numpy as np
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score

i = np.arange(60)
labels = (i * i + i // 7) % 3
predicted = (i * i + i // 7 + (i % 5 == 0) + i // 50) % 3
groups = labels * 2 + (i % 4 == 0)
training = np.array([50, 5, 30, 10, 4, 1])

recalls = recall_score(labels, predicted, average=None)
per_group = [accuracy_score(labels[groups == g], predicted[groups == g]) for g in range(6)]
# Each example weighted so that its group weighs as in training.
weights = training[groups] / np.bincount(groups)[groups]
print([float(v) for v in (
    accuracy_score(labels, predicted),
    balanced_accuracy_score(labels, predicted),
    recalls.min(),
    min(per_group),
    accuracy_score(labels, predicted, sample_weight=weights),
)])
