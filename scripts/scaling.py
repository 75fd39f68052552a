#!/usr/bin/env python3
"""What a training step takes on several ranks: a model, beside what was measured, and what it says
of GPUs that nobody has tried.

    scaling.py FOLDER

Prints the Markdown tables of docs/scaling.md. FOLDER has what `benches/ranks.rs` wrote
(benches/runs/2026-11-23-ranks); the order of a step is that of src/train/step.rs.
"""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PIECE = 25 << 20  # bytes of gradients that are summed at once: src/train/step/sums.rs
TOKENS = 13  # of a caption, on average: benches/common/training.rs
RECORD = 24  # bytes that each pair of a step is told to rank 0 with: src/detect/record.rs
GRADIENT = 4  # bytes


@dataclass
class Block:
    flop: float  # forward, of a pair
    parameters: int


@dataclass
class Model:
    """A ViT and its text tower; blocks in the order of the forward."""

    image: list
    text: list
    embeddings: int  # token embeddings and all else of the text tower: complete at its end
    image_rest: int
    width: int  # of features

    @classmethod
    def load(cls, name):
        config = json.loads((REPOSITORY / f"src/encode/configs/{name}.json").read_text())
        vision, text, out = config["vision_cfg"], config["text_cfg"], config["embed_dim"]

        def block(tokens, width, causal):
            flop = 2 * tokens * 12 * width**2 + causal * 4 * tokens**2 * width
            return Block(flop, 12 * width**2 + 13 * width)

        v, t = vision["width"], text["width"]
        patches = (vision["image_size"] // vision["patch_size"]) ** 2
        stem = 3 * vision["patch_size"] ** 2 * v
        return cls(
            [block(patches + 1, v, 1)] * vision["layers"],
            [block(TOKENS, t, 0.5)] * text["layers"],
            (text["vocab_size"] + text["context_length"] + out) * t,
            stem + (patches + 2 + out) * v,
            out,
        )

    def parameters(self):
        blocks = sum(block.parameters for block in self.image + self.text)
        return blocks + self.embeddings + self.image_rest

    def flop(self):
        """Of a pair, forward."""
        return sum(block.flop for block in self.image + self.text)


@dataclass
class Machine:
    """A rank's, and what lies between ranks. Seconds, from FLOPs and bytes."""

    rate: float  # FLOP a second that the towers reach
    loss_rate: float  # and the loss
    memory: float  # bytes a second
    feature: int  # bytes of a number of an embedding
    all_reduce: callable  # of bytes
    all_gather: callable  # of bytes that a rank hands in
    agree: float  # between steps


def step(model, machine, pairs, ranks):
    """Seconds by cause."""
    forward = [tower_seconds(tower, machine, pairs) for tower in (model.image, model.text)]
    everyone, width = pairs * ranks, model.width
    # One rank needs four products of rows x columns x width, several six: each makes its own rows
    # of both directions.
    products = 12 if ranks > 1 else 8
    # Moments, gradients and parameters, read or written once each.
    update = 30 * model.parameters() / machine.memory
    parts = {
        "towers": 3 * sum(forward) + update,
        "loss": products * pairs * everyone * width / machine.loss_rate,
    }
    if ranks == 1:
        return parts
    gathered = [pairs * width * machine.feature] * 2 + [4 * pairs] * 2 + [8 * pairs]
    parts["gathering"] = sum(machine.all_gather(size) for size in gathered)
    parts["sums not hidden"] = exposed(model, machine, pairs)
    parts["agreement"] = machine.agree
    return parts


def tower_seconds(tower, machine, pairs):
    return pairs * sum(block.flop for block in tower) / machine.rate


def exposed(model, machine, pairs):
    """What is left of the sums when the backward is done: pieces are summed one after another, each
    from when it is complete."""
    now = ready = 0.0
    waiting = 0

    def begin():
        nonlocal ready, waiting
        if waiting > 0:
            ready = max(ready, now) + machine.all_reduce(waiting)
        waiting = 0

    for tower, rest in [(model.image, model.image_rest), (model.text, model.embeddings)]:
        for block in reversed(tower):
            now += 2 * pairs * block.flop / machine.rate
            waiting += GRADIENT * block.parameters
            if waiting >= PIECE:
                begin()
        waiting += GRADIENT * rest
        begin()
    return max(0.0, ready - now)


def table(head, rows):
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def between(points, x):
    """Along the line through the two nearest points."""
    points = sorted(points)
    after = next((i for i, (at, _) in enumerate(points) if at >= x and i > 0), len(points) - 1)
    (x0, y0), (x1, y1) = points[after - 1 : after + 1]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def measured(path):
    """A record's step: measured, and as the model has it from the record's other figures."""
    record = json.loads(path.read_text())
    model, pairs, ranks = Model.load(record["model"]), record["pairs"], record["ranks"]
    exchanges = record["exchanges"]
    curve = lambda what: lambda size: between([(e["bytes"], e[what]) for e in exchanges], size)
    # All that a step alone takes is taken as the towers'.
    rate = 3 * pairs * model.flop() / record["alone_s"]
    reduce, gather = curve("all_reduce_s"), curve("all_gather_s")
    machine = Machine(rate, rate, math.inf, 4, reduce, gather, 0)
    parts = step(model, machine, pairs, ranks)
    parts["loss"] -= step(model, machine, pairs, 1)["loss"]
    return record, sum(parts.values()), parts


# The machines of the prediction. Rates are half of what an H100 has on paper (989 TFLOP/s of bf16)
# and three quarters for the loss, which is one large product; a node has eight, which exchange
# 360 GB/s each, and a network card of 400 Gb/s to each of them, at 90 %. A collective takes 15 us and
# as much again for each doubling of nodes; a ring gathers in steps of 3 us. None of this is measured.
NODE, NVLINK, NETWORK, RATE, LOSS_RATE, MEMORY = 8, 360e9, 45e9, 495e12, 740e12, 2.7e12
START, HOP = 15e-6, 3e-6
TCP = 3e9  # bytes a second that rank 0's host hears on its management network; assumed


def gpus(ranks, heard):
    nodes = -(-ranks // NODE)
    rate = NVLINK if nodes == 1 else NETWORK
    start = START * (1 + math.log2(nodes))
    # Rank 0 takes a message from each: measured with all of them on one machine, or at the wire's rate.
    return lambda pairs: Machine(
        RATE, LOSS_RATE, MEMORY, 2,
        lambda size: start + 2 * (ranks - 1) / ranks * size / rate,
        lambda size: HOP * (ranks - 1) + (ranks - 1) * size / rate,
        max(heard(RECORD * pairs), RECORD * pairs / TCP) * ranks,
    )  # fmt: skip


def main():
    folder = Path(sys.argv[1])
    names = {"2.json": "one host", "wire-10gbit.json": "two, 10 Gb/s"}
    names |= {"wire-1gbit.json": "two, 1 Gb/s", "wire-300mbit.json": "two, 0.3 Gb/s"}
    rows = []
    for name, what in names.items():
        record, seconds, parts = measured(folder / name)
        took = record["among_s"]
        rows.append([
            what, f"{1e3 * record['alone_s']:.0f}", f"{1e3 * parts['sums not hidden']:.0f}",
            f"{1e3 * seconds:.0f}", f"{1e3 * took:.0f}", f"{100 * (seconds / took - 1):+.0f} %",
        ])  # fmt: skip
    table(["2 ranks on", "step alone, ms", "sums not hidden, ms", "step, model, ms",
           "step, measured, ms", "model is off by"], rows)  # fmt: skip
    little, much = (
        json.loads((folder / name).read_text())["agreements"] for name in ["1.json", "agree.json"]
    )
    head = [f"agreement, {told[0]['bytes'] / 1e3:.1f} kB each, ms" for told in [little, much]]
    took = lambda told: f"{1e3 * told['agree_s']:.2f}"
    table(["ranks", *head], [[str(a["ranks"]), took(a), took(b)] for a, b in zip(little, much)])
    # Of a rank, by what it has to tell.
    points = [
        (told[-1]["bytes"], told[-1]["agree_s"] / told[-1]["ranks"]) for told in [little, much]
    ]
    heard = lambda size: between(points, size)
    for name, pairs in [("ViT-B-32", 1024), ("ViT-B-16", 512)]:
        million = Model.load(name).parameters() / 1e6
        print(f"{name}, {million:.0f} M parameters, {pairs} pairs a GPU; ms:\n")
        predict(name, heard, [(ranks, pairs) for ranks in [1, 8, 64, 512]])
    print("ViT-B-32, 32,768 pairs on all GPUs together; ms:\n")
    predict("ViT-B-32", heard, [(ranks, 32768 // ranks) for ranks in [8, 64, 512]])


def predict(name, heard, shapes):
    """The table of GPUs and pairs of each."""
    model, rows, first = Model.load(name), [], None
    for ranks, pairs in shapes:
        parts = step(model, gpus(ranks, heard)(pairs), pairs, ranks)
        total = sum(parts.values())
        rate = pairs / total
        first = first or rate
        shown = ["towers", "loss", "gathering", "sums not hidden", "agreement"]
        rows.append([
            str(ranks), f"{pairs * ranks:,}", *(f"{1e3 * parts.get(p, 0):.1f}" for p in shown),
            f"{1e3 * total:.1f}", f"{rate * ranks / 1e3:,.0f} k", f"{100 * rate / first:.0f} %",
        ])  # fmt: skip
    table(["GPUs", "global batch", "towers, update", "loss", "gathering", "sums not hidden",
           "agreement", "step", "pairs/s", "efficiency"], rows)  # fmt: skip


if __name__ == "__main__":
    main()
