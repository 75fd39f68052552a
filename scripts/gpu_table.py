#!/usr/bin/env python3
"""Joins the figures in a folder that `scripts/gpu_report.sh` filled into Markdown tables.

    gpu_table.py FOLDER

Reads ops.json and step-*.json (ours), peers-ops.json and peers-step.json (theirs); any may lack.
"""

import glob
import json
import os
import sys


def read(path):
    if not os.path.exists(path):
        return None
    with open(path) as file:
        return json.load(file)


def show(rows):
    """What each peer took, the fastest first; what it said where it refused."""
    done = sorted((row for row in rows if "error" not in row), key=lambda row: row["median_ms"])
    said = [f"{row['peer']} {row['median_ms']:.3f}" for row in done]
    return done, ", ".join(said + [f"{row['peer']} refused" for row in rows if "error" in row])


def table_of_ops(ours, peers):
    limits = ours["limits"]
    print(f"## Operations on {ours['device']}\n")
    print(f"Limits: product {limits['product_flop_per_s'] / 1e12:.1f} TFLOP/s, "
          f"copy {limits['copy_bytes_per_s'] / 1e9:.0f} GB/s. Medians in ms; the ratio is the "
          "fastest peer's time over ours: above 1 we are faster.\n")
    print("| operation | ours | of the limit | ratio | peers |\n|---|---|---|---|---|")
    theirs = {}
    for row in (peers or {}).get("rows", []):
        theirs.setdefault(row["name"], []).append(row)
    for row in ours["ops"]:
        done, said = show(theirs.pop(row["name"], []))
        ratio = f"{done[0]['median_ms'] / row['median_ms']:.2f}" if done else ""
        time, share = f"{row['median_ms']:.3f}", f"{100 * row['share']:.0f} %"
        print(f"| {row['name']} | {time} | {share} | {ratio} | {said} |")
    for name, rows in theirs.items():
        print(f"| {name} | | | | {show(rows)[1]} |")


def table_of_steps(ours, peers):
    print("\n## Training steps\n")
    print("| model | pairs | who | ms | pairs/s | of the product's rate |")
    print("|---|---|---|---|---|---|")
    for row in ours:
        print(f"| {row['model']} | {row['pairs']} | roclip | {row['median_s'] * 1e3:.2f} | "
              f"{row['pairs_per_s']:.0f} | {100 * row['share']:.0f} % |")
    for row in (peers or {}).get("rows", []):
        time, rate = ("", row["error"]) if "error" in row else \
            (f"{row['median_ms']:.2f}", f"{row['pairs_per_s']:.0f}")
        print(f"| {row['name']} | {row['pairs']} | {row['peer']} | {time} | {rate} | |")


def join(folder):
    ours = read(os.path.join(folder, "ops.json"))
    if ours:
        table_of_ops(ours, read(os.path.join(folder, "peers-ops.json")))
    steps = [read(path) for path in sorted(glob.glob(os.path.join(folder, "step-*.json")))]
    peers = read(os.path.join(folder, "peers-step.json"))
    if steps or peers:
        table_of_steps(steps, peers)


if __name__ == "__main__":
    join(sys.argv[1])
