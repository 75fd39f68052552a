#!/usr/bin/env python3
"""Writes the tables and the curves of docs/results.md from what reproduce.py measured.

    tables.py [--page docs/results.md] [--runs docs/results/runs/small]

What stands in the page between `<!-- table NAME -->` and `<!-- end -->` is replaced, NAME one of
headline, detection, ablations and rates; the rest is prose that people write. Needs Matplotlib.
"""

import argparse
import json
import math
import re
import statistics
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ATTACKS = ["targeted", "badnets", "blended", "wanet"]
COLOURS = {"clip": "#b3261e", "clip-aug": "#e08a1e", "roclip": "#1e5fb3", "quarantine": "#1a7f4b"}


class Run:
    """What was measured of a run."""

    def __init__(self, path):
        told = json.loads(path.read_text())
        self.method, self.data, self.seed = told["method"], told["data"], told["seed"]
        self.curve, self.detection, self.metrics = told["curve"], told["detection"], told["metrics"]

    def of(self, task, name):
        return self.metrics.get(task, {}).get(name)

    def accuracy(self):
        return [
            self.of("cifar10/zeroshot_classification", "acc1"),
            self.of("cifar10/linear_probe", "lp_acc1"),
            self.of("fashion-mnist/linear_probe", "lp_acc1"),
        ]

    def success(self, name):
        return self.of("cifar10/attack_success", name)


def percent(values):
    """The mean over seeds, and behind it the least and the greatest."""
    values = [100 * v for v in values if v is not None]
    if not values:
        return "–"
    mean, least, most = (f"{f(values):.1f}" for f in (statistics.mean, min, max))
    return mean if least == most else f"{mean} ({least}–{most})"


def wilson(hits, of):
    """The 95 % interval of a share, in percent."""
    z = 1.959964
    centre, scale = hits / of + z * z / (2 * of), 1 + z * z / of
    half = z * math.sqrt(hits / of * (1 - hits / of) / of + z * z / (4 * of * of))
    return 100 * (centre - half) / scale, 100 * (centre + half) / scale


def targeted(runs):
    shares = [run.success("psr-targeted") for run in runs]
    if None in shares:
        return "–"
    hits, of = round(16 * sum(shares)), 16 * len(shares)
    low, high = wilson(hits, of)
    return f"{hits} of {of} ({low:.0f}–{high:.0f} %)"


def backdoor(runs, attack):
    """Success with the trigger, and what the same pictures are read as without it."""
    names = [f"asr-{attack}", f"asr_without_trigger-{attack}"]
    told = [percent([run.success(name) for run in runs]) for name in names]
    return told[0] if told[0] == "–" else " / ".join(told)


def table(head, rows):
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def methods_table(runs, methods, data):
    """Utility and attack success of methods, over all seeds there are."""
    rows = []
    for label, method, source in methods:
        chosen = [run for run in runs if run.method == method and run.data == (source or data)]
        if not chosen:
            continue
        cells = [percent(column) for column in zip(*(run.accuracy() for run in chosen))]
        cells.append(targeted(chosen))
        for attack in ATTACKS[1:]:
            cells.append(backdoor(chosen, attack))
        rows.append([label, str(len(chosen)), *cells])
    head = ["", "seeds", "zero-shot", "probe CIFAR-10", "probe Fashion-MNIST", "targeted"]
    return table([*head, "BadNets", "blended", "WaNet"], rows)


HEADLINE = [
    ("CLIP, clean data, augmented", "clip-aug", "clean"),
    ("**CLIP**", "clip", None),
    ("CLIP, augmented", "clip-aug", None),
    ("RoCLIP as published", "roclip", None),
    ("**CLIP, augmented, without RoCLIP's suspects**", "quarantine", None),
]
ABLATIONS = [
    ("RoCLIP as published: K = 2, pool 2 %", "roclip", None),
    ("K = 1", "roclip-k1", None),
    ("K = 3", "roclip-k3", None),
    ("pool 10 %", "roclip-pool-10", None),
    ("pool 50 %", "roclip-pool-50", None),
    ("without augmentation", "roclip-plain", None),
    ("`--objective roclip`, pool 50 %", "roclip-guarded", None),
    ("the same, K = 4", "roclip-guarded-k4", None),
    ("CyCLIP", "cyclip", None),
    ("CyCLIP, augmented", "cyclip-aug", None),
    ("SafeCLIP", "safeclip", None),
    ("CLIP without RoCLIP's suspects", "quarantine-plain", None),
    ("CLIP, augmented, without its own suspects", "quarantine-by-clip", None),
]
ACCUSERS = [
    ("RoCLIP as published", "roclip", "mixed"),
    ("CLIP, augmented", "clip-aug", "mixed"),
    ("CLIP", "clip", "mixed"),
    ("RoCLIP, without augmentation", "roclip-plain", "mixed"),
    ("SafeCLIP", "safeclip", "mixed"),
    ("CyCLIP", "cyclip", "mixed"),
    ("CLIP, augmented, after quarantine", "quarantine", "mixed"),
    ("CLIP, augmented, clean data", "clip-aug", "clean"),
]


def detection_table(runs):
    """Who is suspected, by attack, and how good the ranking of all pairs is."""
    rows = []
    for label, method, data in ACCUSERS:
        chosen = [r.detection for r in runs if (r.method, r.data) == (method, data)]
        if not chosen:
            continue
        total = lambda kind, name: sum(d[kind].get(name, 0) for d in chosen)
        cells = []
        for attack in ATTACKS:
            planted = total("planted", attack)
            precision = percent([d["precision_at_k"].get(attack) for d in chosen])
            found = f"{total('suspects', attack)} of {planted}; {precision}"
            cells.append(found if planted else "–")
        clean = total("suspects", "clean")
        pairs = sum(d["pairs"] - sum(d["planted"].values()) for d in chosen)
        graded = [d["scores"]["score"] for d in chosen if d["scores"]["score"]]
        auroc = percent([g["auroc"] for g in graded])
        rows.append([label, *cells, f"{clean} of {pairs}", auroc])
    return table(["accused by", "targeted", "BadNets", "blended", "WaNet", "clean", "AUROC"], rows)


def rates_table(runs):
    """One attack alone at several rates: its success, and who RoCLIP accuses."""
    rows = []
    by_rate = lambda data: float(data.partition("-")[2])
    for attack in ["targeted", "badnets"]:
        for data in sorted({r.data for r in runs if r.data.startswith(attack + "-")}, key=by_rate):
            of = {r.method: r for r in runs if r.data == data}
            cells = []
            for method in ["clip", "roclip", "quarantine"]:
                if method not in of:
                    cells.append("–")
                elif attack == "targeted":
                    cells.append(targeted([of[method]]))
                else:
                    cells.append(backdoor([of[method]], attack))
            accused = "–"
            if "roclip" in of:
                found = of["roclip"].detection
                planted = found["planted"][attack]
                clean = found["pairs"] - planted
                suspects = found["suspects"]
                accused = f"{suspects[attack]} of {planted}; {suspects['clean']} of {clean} clean"
            rows.append([f"{attack}, {by_rate(data):g} %", *cells[:2], accused, cells[2]])
    head = ["attack", "CLIP", "RoCLIP as published", "RoCLIP accuses"]
    return table([*head, "CLIP, augmented, without these"], rows)


def curves(runs, path):
    """Zero-shot accuracy and attack success after every epoch, seed 0."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {"svg.hashsalt": "roclip", "font.size": 9, "font.family": "sans-serif"}
    )
    import matplotlib.pyplot as plot

    shown = [
        ("zero-shot accuracy", "zeroshot-top1"),
        ("targeted", "psr-targeted"),
        ("BadNets", "asr-badnets"),
        ("blended", "asr-blended"),
    ]
    figure, axes = plot.subplots(1, len(shown), figsize=(11, 2.8), sharey=True)
    labels = {
        "clip": "CLIP",
        "clip-aug": "CLIP, augmented",
        "roclip": "RoCLIP as published",
        "quarantine": "without RoCLIP's suspects",
    }
    for axis, (title, metric) in zip(axes, shown):
        for method, label in labels.items():
            for run in (r for r in runs if (r.method, r.data, r.seed) == (method, "mixed", 0)):
                points = [(epoch["epoch"], 100 * epoch[metric]) for epoch in run.curve]
                axis.plot(*zip(*points), label=label, color=COLOURS[method], linewidth=1.6)
        axis.set(title=title, xlabel="epoch", ylim=(0, 100))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("%")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=len(names), frameon=False)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--page", type=Path, default=REPOSITORY / "docs/results.md")
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "docs/results/runs/small")
    args = parser.parse_args()
    runs = [Run(path) for path in sorted(args.runs.glob("*.json"))]
    if not runs:
        sys.exit(f"no results in {args.runs}; reproduce.py makes them")
    tables = {
        "headline": methods_table(runs, HEADLINE, "mixed"),
        "ablations": methods_table(runs, ABLATIONS, "mixed"),
        "detection": detection_table(runs),
        "rates": rates_table(runs),
    }
    page = args.page.read_text()
    for name in re.findall("<!-- table (.*?) -->", page):
        if name not in tables:
            sys.exit(f"{args.page}: no table {name}; there are {', '.join(tables)}")
        block = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        page = block.sub(lambda found: f"{found[1]}{tables[name]}\n{found[2]}", page)
    args.page.write_text(page)
    curves(runs, args.page.parent / "results/curves.svg")


main()
