"""Golden values of the mixture of two Gaussians that SafeCLIP tells pairs apart by.

    python tests/golden/make_mixture.py        (rewrites mixture.json and its line of MANIFEST)

Made with scikit-learn (version in the file) and numpy. Deterministic. GaussianMixture starts where ours
does, at the lower and the upper half of the values, and stops where ours does; with 1e-6 added to variances,
as is its default.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import sklearn
from sklearn.mixture import GaussianMixture

HERE = Path(__file__).parent
GENERATOR = Path(__file__).name
CASES = {
    # (values, mean, standard deviation) of each group
    "apart": [(60, 0.1, 0.04), (140, 0.5, 0.08)],
    "overlapping": [(150, 0.2, 0.1), (100, 0.4, 0.07)],
    "a few outliers": [(3, -0.2, 0.02), (247, 0.45, 0.05)],
    "nested": [(120, 0.3, 0.2), (130, 0.32, 0.02)],
    "one group": [(200, 0.25, 0.05)],
}


def fit(name, groups, rng):
    values = np.sort(np.concatenate([rng.normal(mean, sd, n) for n, mean, sd in groups]).astype(np.float32))
    values = values.astype(np.float64)
    halves = np.split(values, [len(values) // 2])
    mixture = GaussianMixture(
        2, tol=1e-7, max_iter=1000, covariance_type="spherical", reg_covar=1e-6,
        weights_init=[len(half) / len(values) for half in halves],
        means_init=[[half.mean()] for half in halves],
        precisions_init=[1 / (half.var() + 1e-6) for half in halves],
    ).fit(values[:, None])
    assert mixture.converged_
    order = np.argsort(mixture.means_[:, 0])
    points = np.linspace(values[0] - 0.1, values[-1] + 0.1, 9)
    return {
        "name": name,
        "values": values.tolist(),
        "weights": mixture.weights_[order].tolist(),
        "means": mixture.means_[order, 0].tolist(),
        "variances": mixture.covariances_[order].tolist(),
        "points": points.tolist(),
        "posteriors": mixture.predict_proba(points[:, None])[:, order[1]].tolist(),
    }


def main():
    rng = np.random.default_rng(20261123)
    cases = [fit(name, groups, rng) for name, groups in CASES.items()]
    path = HERE / "mixture.json"
    path.write_text(json.dumps({"sklearn": sklearn.__version__, "cases": cases}) + "\n")
    manifest = HERE / "MANIFEST"
    lines = [line for line in manifest.read_text().splitlines() if line.split()[2] != GENERATOR]
    lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}  {GENERATOR}")
    manifest.write_text("".join(line + "\n" for line in sorted(lines, key=lambda line: line.split()[1])))


if __name__ == "__main__":
    main()
