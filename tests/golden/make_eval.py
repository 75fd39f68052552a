"""Golden values of the measures: accuracies, retrieval, intervals, linear probe.

Command:  python tests/golden/make_eval.py              (from the root of the repository)
Versions: Python 3.11, numpy 2.4, scipy 1.17.1, scikit-learn 1.9.1, torch 2.15.0 (CPU),
          open_clip_torch 3.3.0 (with its open_clip_train)
Writes:   eval.json

All inputs are multiples of 1/64, so that JSON, float32 and float64 hold the same numbers. The probe
is fitted by scikit-learn's Newton iterations in float64; "gradient" is the largest component of the
gradient left, computed here from the definition.
"""

import json
import pathlib

import numpy as np
import torch
from open_clip_train.train import get_clip_metrics
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

HERE = pathlib.Path(__file__).parent
rng = np.random.default_rng(7)


def coarse(values):
    return np.round(values * 64) / 64


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def flat(values):
    return np.asarray(values).reshape(-1).tolist()


def classification():
    classes, n, width = 12, 60, 7
    centres = coarse(rng.normal(size=(classes, width)))
    labels = np.concatenate([np.arange(classes - 1), rng.integers(0, classes - 1, n - classes + 1)])
    features = coarse(centres[labels] + 0.9 * rng.normal(size=(n, width)))
    scores = unit(features) @ unit(centres).T
    top = [top_k_accuracy_score(labels, scores, k=k, labels=np.arange(classes)) for k in (1, 3, 5, 10)]
    return {
        "width": width, "centres": flat(centres), "features": flat(features), "labels": flat(labels),
        "top": top, "recall": balanced_accuracy_score(labels, scores.argmax(1)),
    }


def one_caption_each():
    """open_clip's own function, which knows one caption for each picture."""
    n, width = 40, 5
    images = coarse(rng.normal(size=(n, width)))
    texts = coarse(images + 0.6 * rng.normal(size=(n, width)))
    features = [torch.tensor(unit(rows)) for rows in (images, texts)]
    metrics = get_clip_metrics(*features, logit_scale=torch.tensor(1.0, dtype=torch.float64))
    return {"width": width, "images": flat(images), "texts": flat(texts),
            "metrics": {name: float(value) for name, value in metrics.items()}}


def several_captions_each():
    """Shares of questions one of whose right answers is among the k largest scores."""
    n, each, width = 25, 3, 5
    images = coarse(rng.normal(size=(n, width)))
    owner = np.repeat(np.arange(n), each)
    texts = coarse(images[owner] + 1.2 * rng.normal(size=(n * each, width)))
    scores = unit(texts) @ unit(images).T
    right = owner[:, None] == np.arange(n)[None]

    def recall(scores, right, k):
        nearest = np.argsort(-scores, axis=1)[:, :k]
        return float(np.take_along_axis(right, nearest, 1).any(1).mean())

    return {
        "width": width, "images": flat(images), "texts": flat(texts), "owner": flat(owner),
        "image": [recall(scores, right, k) for k in (1, 5, 10)],
        "text": [recall(scores.T, right.T, k) for k in (1, 5, 10)],
    }


def probe():
    classes, width, n, n_test = 4, 6, 90, 50
    centres = 1.5 * rng.normal(size=(classes, width))
    labels, test_labels = rng.integers(0, classes, n), rng.integers(0, classes, n_test)
    features = coarse(centres[labels] + rng.normal(size=(n, width)))
    test = coarse(centres[test_labels] + rng.normal(size=(n_test, width)))
    fits = []
    for penalty in (0.01, 1.0, 30.0):
        model = LogisticRegression(C=1 / penalty, solver="newton-cg", tol=1e-13, max_iter=10_000)
        model.fit(features, labels)
        logits = features @ model.coef_.T + model.intercept_
        own = log_softmax(logits, axis=1)[np.arange(n), labels]
        loss = (-own.sum() + penalty / 2 * (model.coef_ ** 2).sum()) / n
        off = (softmax(logits, axis=1) - np.eye(classes)[labels]) / n
        gradient = np.abs(off.T @ features + penalty / n * model.coef_).max()
        gradient = max(gradient, np.abs(off.sum(0)).max())
        test_logits = test @ model.coef_.T + model.intercept_
        fits.append({
            "penalty": penalty, "loss": loss, "gradient": gradient,
            "probabilities": flat(softmax(test_logits, axis=1)),
            "accuracy": float(model.score(test, test_labels)),
        })
    return {"width": width, "classes": classes, "features": flat(features), "labels": flat(labels),
            "test": flat(test), "test_labels": flat(test_labels), "fits": fits}


def intervals():
    cases = [(2, 16), (0, 10), (10, 10), (1, 1), (37, 50_000), (499, 1000)]
    rows = []
    for hits, of in cases:
        interval = binomtest(hits, of).proportion_ci(method="wilson")
        rows.append([hits, of, interval.low, interval.high])
    return rows


value = {"classification": classification(), "one": one_caption_each(),
         "several": several_captions_each(), "probe": probe(), "wilson": intervals()}
(HERE / "eval.json").write_text(json.dumps(value, separators=(",", ":")) + "\n")
