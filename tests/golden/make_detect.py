"""Golden values of the density detectors and of the figures that judge a score.

    python make_detect.py

Distances and neighbours are scikit-learn's, the scores numpy's in float64 from the published
formulas (Huang et al., arXiv 2502.01385, where a point is not its own neighbour); AUROC, average
precision and the ROC curve are scikit-learn's. Features are the hash that tests/common/tiny.rs
computes, too, so no file holds them.

numpy 2, scikit-learn 1
"""

import json
from pathlib import Path

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from sklearn.neighbors import NearestNeighbors

HERE = Path(__file__).parent
ROWS, WIDTH, K = 150, 24, 16
EPS = 1e-4


def splitmix64(x):
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def noise(stream, n):
    return np.array([(splitmix64((stream << 32) | i) >> 48) / 32768 - 1 for i in range(n)])


def density(points, k):
    """k-distance, SLOF and DAO of every point."""
    distances, neighbours = NearestNeighbors(n_neighbors=k).fit(points).kneighbors()
    farthest = distances[:, -1]
    lid = -k / np.log(distances / farthest[:, None] + EPS).sum(axis=1)
    ratios = farthest[:, None] / farthest[neighbours]
    return {
        "k_distance": farthest.tolist(),
        "slof": ratios.mean(axis=1).tolist(),
        "dao": (lid[neighbours] * np.log(ratios)).mean(axis=1).tolist(),
    }


def figures(scores, truth):
    """AUROC, average precision, and the least false positives at 95 % true ones."""
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    return {
        "auroc": roc_auc_score(truth, scores),
        "average_precision": average_precision_score(truth, scores),
        "fpr_at_95_tpr": fpr[tpr >= 0.95].min(),
        "roc": list(zip(fpr.tolist(), tpr.tolist())),
    }


def main():
    points = noise(71, ROWS * WIDTH).reshape(ROWS, WIDTH)
    points[::7] *= 3.0
    golden = {"rows": ROWS, "width": WIDTH, "k": K, "density": density(points, K), "metrics": []}
    # Scores of 8, 40 and about 32,768 different values: many ties, some, hardly any.
    for stream, levels in enumerate([4, 20, 16384]):
        scores = np.floor(noise(72 + stream, 400) * levels)
        truth = noise(75, 400) * levels + scores * 0.7 > levels * 0.9
        case = {"stream": 72 + stream, "levels": levels, "poisoned": int(truth.sum())}
        golden["metrics"].append(case | figures(scores, truth))
    (HERE / "detect.json").write_text(json.dumps(golden, indent=None) + "\n")


main()
