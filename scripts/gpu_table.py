#!/usr/bin/env python3
"""Joins the figures in a folder that `scripts/gpu_report.sh` filled into Markdown tables.

    gpu_table.py FOLDER

Reads ops.json and step-*.json (ours), peers-ops.json and peers-step.json (theirs), and of matching
and of the loss, where both took turns, a file of each round: pool-KERNELS-ROUND.json,
peers-pool-ROUND.json, and loss the same. Any may lack.
"""

import glob
import json
import os
import statistics
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


class Turns:
    """What all rounds of a part found: for every operation and everyone who does it, a list of
    rows, one a round. Ours are called `roclip` and their kernels."""

    def __init__(self, folder, part):
        self.rows, self.devices, self.torch = {}, set(), None
        for path in sorted(glob.glob(os.path.join(folder, f"{part}-*-*.json"))):
            found = read(path)
            for row in found["ops"]:
                self.take(found, row, f"roclip {found['kernels']}")
        for path in sorted(glob.glob(os.path.join(folder, f"peers-{part}-*.json"))):
            found = read(path)
            self.torch = found["torch"]
            for row in found["rows"]:
                self.take(found, row, row["peer"])

    def take(self, found, row, who):
        self.devices.add(found["device"])
        self.rows.setdefault(row["name"], {}).setdefault(who, []).append(row)

    def done(self, name, who):
        return [row for row in self.rows.get(name, {}).get(who, []) if "error" not in row]

    def time(self, name, who):
        """The median of the rounds' medians, None where there is none."""
        times = [row["median_ms"] for row in self.done(name, who)]
        return statistics.median(times) if times else None

    def fastest(self, name, start):
        """Who of those whose name begins so is the fastest."""
        known = [who for who in self.rows.get(name, {}) if who.startswith(start)]
        known = [who for who in known if self.time(name, who)]
        return min(known, key=lambda who: self.time(name, who), default=None)


def table_of_turns(title, turns):
    print(f"\n## {title} on {', '.join(sorted(turns.devices))}, torch {turns.torch}\n")
    print("Ours and theirs in turn; of all rounds the median of medians, and the least and the "
          "largest of them. The limit of ours is cuBLASLt's product of the same shape, measured in "
          "the same process; the ratio is a time over that of our fastest. Memory is what a call takes "
          "beyond its operands: of theirs what PyTorch's allocator gave, results included, of ours "
          "what the loss keeps beside embeddings and gradients.\n")
    print("| operation | who | ms | rounds | ratio | of the limit | memory, GB | agreement |")
    print("|---|---|---|---|---|---|---|---|")
    for name, everyone in turns.rows.items():
        ours = turns.fastest(name, "roclip")
        for who, rows in sorted(everyone.items(), key=lambda item: order(turns, name, item[0])):
            print("| " + " | ".join(cells(turns, name, who, rows, ours)) + " |")


def order(turns, name, who):
    time = turns.time(name, who)
    return (not who.startswith("roclip"), time is None, time or 0)


def cells(turns, name, who, rows, ours):
    done, time = turns.done(name, who), turns.time(name, who)
    if time is None:
        return [name, who, "", "", "", "", "", rows[-1]["error"].replace("|", "/")]
    times = [row["median_ms"] for row in done]
    spread = f"{min(times):.3f} to {max(times):.3f} ({len(times)})"
    ratio = f"{time / turns.time(name, ours):.2f}" if ours else ""
    share = f"{100 * shares(done):.0f} %" if "share" in done[-1] else ""
    extra = f"{done[-1]['extra_bytes'] / 1e9:.3f}" if done[-1].get("extra_bytes") else ""
    said = done[-1].get("judged", "")
    return [name, who, f"{time:.3f}", spread, ratio, share, extra, said]


def shares(rows):
    return statistics.median(row["share"] for row in rows)


def pool_targets(turns):
    """Each: what, what is asked for, what was found, in the unit of the former."""
    for shape, share, asked in [
        ("512x20000x1024", 1.0, [(2, "eager bf16"), (1.5, "compile")]),
        ("4096x100000x1024", 0.95, [(1.35, "eager bf16"), (2, "FAISS")]),
        ("32768x1000000x512", 0.95, [(1.6, "chunks")]),
    ]:
        name, ours = f"pool matching {shape}", "roclip hopper"
        done = turns.done(name, ours)
        yield f"match {shape}: of cuBLASLt's rate", share, shares(done) if done else None
        yield from ratios(turns, name, ours, asked)
    bits, whole = (turns.time(name, f"roclip {kernels}") for kernels in ("int8", "hopper"))
    yield f"match {shape}: int8 against our bf16", 1.5, bits and whole and whole / bits
    hashes = [{row["hash"] for row in turns.done(name, f"roclip {kernels}")}
              for kernels in ("int8", "hopper")]
    same = float(hashes[0] == hashes[1] and len(hashes[0]) == 1) if all(hashes) else None
    yield f"match {shape}: int8 finds the same indices and scores (1: yes)", 1, same


def loss_targets(turns):
    ours = "roclip auto"
    for n in (32_768, 65_536):
        for width in (512, 1024):
            name = f"contrastive both {n}x{n}x{width}"
            asked = [(2.5, "open_clip eager"), (1.8, "open_clip compile"), (8, "Inf-CL")]
            yield from ratios(turns, name, ours, asked)
            done = turns.done(name, ours)
            if n == 32_768:
                extra = done and done[-1]["extra_bytes"] / 1e9
                yield f"{name}: extra memory, GB, at most", -0.3, -extra if extra else None
    name = "contrastive both 262144x262144x512"
    yield f"{name}: runs (1: yes)", 1, 1.0 if turns.time(name, ours) else None


def ratios(turns, name, ours, asked):
    for least, peer in asked:
        who = turns.fastest(name, peer)
        times = turns.time(name, ours), turns.time(name, who)
        yield f"{name}: against {who or peer}", least, times[1] / times[0] if all(times) else None


def table_of_targets(targets):
    print("\n## Targets\n\n| target | asked for | found | |\n|---|---|---|---|")
    for what, least, found in targets:
        verdict = "not measured" if found is None else "met" if found >= least else "NOT MET"
        value = "" if found is None else f"{abs(found):.2f}"
        print(f"| {what} | {abs(least):g} | {value} | {verdict} |")


def join(folder):
    ours = read(os.path.join(folder, "ops.json"))
    if ours:
        table_of_ops(ours, read(os.path.join(folder, "peers-ops.json")))
    steps = [read(path) for path in sorted(glob.glob(os.path.join(folder, "step-*.json")))]
    peers = read(os.path.join(folder, "peers-step.json"))
    if steps or peers:
        table_of_steps(steps, peers)
    targets = []
    for part, title, asked in [("pool", "Matching", pool_targets), ("loss", "Loss", loss_targets)]:
        turns = Turns(folder, part)
        if turns.rows:
            table_of_turns(title, turns)
            targets += asked(turns)
    if targets:
        table_of_targets(targets)


if __name__ == "__main__":
    join(sys.argv[1])
