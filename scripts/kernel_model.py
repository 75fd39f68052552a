#!/usr/bin/env python3
"""What the Hopper kernels of `pool` and `contrastive`, and every GPU's of `conv2d`, should take on
one H200: arithmetic.

    kernel_model.py [--clock GHZ] [--rate TFLOPS] [FOLDER]

Prints a Markdown table: of every target shape the time in which the tensor cores could do it, what
is added to that and why, the sum, and how fast that is beside the library with the products alone.
FOLDER is one that `scripts/gpu_report.sh` filled: then also what was measured. The kernels' own
choices (tiles, strips, blocks) are repeated here as the code has them: `kernels/common/hopper.cuh`,
`pool_hopper.cu`, `pool_int8.cu`, `contrastive_hopper.cu`, and the blocks of
`src/backend/cuda/contrastive.rs`.
"""

import argparse
from dataclasses import dataclass, field

# The machine: published, but for what a comment says.
SMS, CLUSTER, L2 = 132, 2, 60e6
FLOP = {"bf16": 4096, "int8": 8192}  # a cycle and multiprocessor, dense
MEMORY = 4.3e12  # bytes a second, read and written: measured by a copy
LAUNCH = 2.5e-6  # seconds a kernel begins and ends in that nothing hides; assumed

# The kernels.
ROWS, STAGES, LEAD, ROW_BYTES, STRIPS = 128, 4, 2, 128, 64
BAND = CLUSTER * ROWS
CLUSTERS = SMS // CLUSTER
GROUPS, MAX_BANDS = STRIPS // (CLUSTER * 8), 64
PART, LEFT = 16, 130  # of the search in 8 bits: the part, the candidates of a query; simulated
BLOCK, OPERAND = 8192, 4 << 20  # rows and columns of weights at most; elements of the columns

# The 3 x 3 convolutions of ResNet-50: how many; images, side, channels in and out.
CONVOLUTIONS = [(1, 256, 112, 32, 32), (1, 256, 112, 32, 64), (3, 256, 56, 64, 64),
                (1, 256, 56, 128, 128), (3, 256, 28, 128, 128), (1, 256, 28, 256, 256),
                (5, 256, 14, 256, 256), (1, 256, 14, 512, 512), (2, 256, 7, 512, 512)]
WARP_PRODUCTS = 0.62  # of the tensor cores' rate that a warp's products (mma.sync) reach; published

# Cycles in which a warpgroup looks at its 64 x 256 products, counted by hand from the pipe that is
# busiest: maxima 64 a cycle, exponentials 16, conversions 64; all instructions 128.
LOOK = {"maximum": 300, "bounds": 800, "one exponential": 1150, "two exponentials": 2300}


def ceil(a, b):
    return -(-a // b)


@dataclass
class Sum:
    """Seconds by cause."""

    parts: dict = field(default_factory=dict)

    def add(self, cause, seconds):
        self.parts[cause] = self.parts.get(cause, 0) + seconds

    def total(self):
        return sum(self.parts.values())


class Model:
    def __init__(self, clock, rate):
        self.clock = clock
        # what a long product reaches of what the clock would allow: power, and the library's loss
        self.sustained = rate / (SMS * FLOP["bf16"] * clock) if rate else 1.0

    def seconds(self, cycles):
        return cycles / (self.clock * self.sustained)

    def products(self, rows, cols, width, kind="bf16"):
        """With every tensor core busy all the time."""
        return self.seconds(2 * rows * cols * width / (SMS * FLOP[kind]))

    def sweep(self, out, rows, cols, width, look, kind="bf16", tile=256, groups=None, strips=None):
        """One run of common/hopper.cuh."""
        depth = ROW_BYTES // (2 if kind == "bf16" else 1)
        steps, bands, tiles = ceil(width, depth), ceil(rows, BAND), ceil(cols, tile)
        groups = min(groups or bands, bands)
        strips = strips or balance(bands, tiles, steps, tile, groups)[1]
        busiest = load(bands, tiles, groups, strips)
        whole = busiest * steps * tile * 4  # cycles: 128 x tile x depth on one multiprocessor
        least = self.products(rows, cols, width, kind)
        out.add("products", least)
        out.add("tiles that do not divide", self.seconds(whole) - least)
        # the other warpgroup has LEAD steps to do while this one looks
        shown = max(0, LOOK[look] * tile // 256 - LEAD * tile * 2)
        out.add("looking", busiest * shown / self.clock)
        out.add("launches", LAUNCH)
        read = (ROWS + tile // CLUSTER) * ROW_BYTES / (tile * 4)  # bytes a cycle and multiprocessor
        return {"tile": tile, "strips": strips, "l2": read}

    def pool(self, b, m, width):
        out = Sum()
        steps = ceil(width, 64)
        cost = {tile: balance(ceil(b, BAND), ceil(m, tile), steps, tile, ceil(b, BAND))[0]
                for tile in (256, 208)}
        tile = 208 if cost[208] + cost[208] // 32 < cost[256] else 256
        how = self.sweep(out, b, m, width, "maximum", tile=tile)
        self.memory(out, 2 * (b + m) * width)
        out.add("launches", LAUNCH)  # join
        return out, how

    def pool_int8(self, b, m, width):
        out, before = Sum(), Sum()
        how = self.sweep(out, b, m, width, "bounds", kind="int8")
        self.sweep(before, b, m // 256 // PART * 256, width, "bounds", kind="int8")
        out.add("bounds of a part before", before.total())
        out.add("quantizing", 3 * (b + m) * width / MEMORY)
        out.add("scoring what is left", b * LEFT * width * 2 / MEMORY)
        out.add("launches", 5 * LAUNCH)
        return out, how

    def forward(self, out, n, width):
        rows = GROUPS * MAX_BANDS * BAND
        for first in range(0, n, rows):
            part = min(rows, n - first)
            how = self.sweep(out, part, n, width, "one exponential", groups=GROUPS)
            out.add("launches", LAUNCH)  # join
        return how

    def backward(self, out, n, width, with_cols=True):
        cols = min(BLOCK, OPERAND // width) // 256 * 256
        for first in range(0, n, BLOCK):
            rows = min(BLOCK, n - first)
            for at in range(0, n, cols):
                some = min(cols, n - at)
                tiles = ceil(some, 256)
                self.sweep(out, rows, some, width, "two exponentials", strips=tiles)
                # the library's, at the rate that is its own
                for m, k in [(rows, some), (some, rows)][: 1 + with_cols]:
                    least = self.products(m, k, width)
                    out.add("products", least)
                    out.add("tiles that do not divide", least * (self.library(m, width) - 1))
                    out.add("launches", LAUNCH)
                    # sums in f32, read and written; they and the weights that the cache has lost
                    self.hidden(out, least, 8 * m * width + 2 * m * k)
            out.add("launches", 2 * LAUNCH)  # zero, round

    def alone(self, b, m, width):
        """The library's product, its result written."""
        out = Sum()
        out.add("products", self.products(b, m, width) * self.library(b, m))
        self.memory(out, 2 * ((b + m) * width + b * m))
        return out.total() + LAUNCH

    @staticmethod
    def library(m, n):
        """Waves of tiles of 128 x 256 over what would fill them."""
        tiles = ceil(m, 128) * ceil(n, 256)
        return ceil(tiles, SMS) * SMS / tiles if tiles < 8 * SMS else 1.0

    def loss(self, n, width, with_cols=True):
        out = Sum()
        how = self.forward(out, n, width)
        self.backward(out, n, width, with_cols)
        return out, how

    def memory(self, out, size):
        """Operands that come once, while products are made."""
        self.hidden(out, out.total(), size)

    @staticmethod
    def hidden(out, during, size):
        out.add("memory", max(0.0, size / MEMORY - during))


def balance(bands, tiles, steps, tile, groups):
    """The kernels' own: cycles, and strips."""
    each = steps * tile * 4 + 100
    item = lambda s: ceil(bands, groups) * ceil(tiles, s) * each + 1000
    return min((ceil(groups * s, CLUSTERS) * item(s), s) for s in range(1, min(STRIPS, tiles) + 1))


def load(bands, tiles, groups, strips):
    """Tiles of the cluster that has most."""
    cut = lambda n, parts, i: n // parts + (i < n % parts)
    loads = [0] * CLUSTERS
    for i in range(groups * strips):
        loads[i % CLUSTERS] += cut(bands, groups, i % groups) * cut(tiles, strips, i // groups)
    return max(loads)


def cases(model):
    """Name, kernels, least flop, the library's time for them, and the model's."""
    for b, m, width in [(512, 20_000, 1024), (4096, 100_000, 1024), (32_768, 1_000_000, 512)]:
        name, flop = f"pool matching {b}x{m}x{width}", 2 * b * m * width
        alone = model.alone(b, m, width)
        yield name, "hopper", flop, alone, *model.pool(b, m, width)
        if b > 512:
            yield name, "int8", flop, alone, *model.pool_int8(b, m, width)
    for n, width in [(32_768, 512), (32_768, 1024), (65_536, 512), (65_536, 1024), (262_144, 512)]:
        unit, size = model.products(n, n, width), f"{n}x{n}x{width}"
        flop, whole = 8 * n * n * width, model.loss(n, width)
        yield f"contrastive both {size}", "auto", flop, 4 * unit, *whole
        flop, rows = 6 * n * n * width, model.loss(n, width, with_cols=False)
        yield f"contrastive both rows {size}", "auto", flop, 3 * unit, *rows


def convolution(images, side, inputs, outputs, part):
    """Cause -> cycles of the busiest multiprocessor, and seconds beside them; conv2d_products.cu,
    conv2d_weights.cu."""
    pixels, small = images * side * side, lambda channels: 32 if channels <= 32 else 64
    if part == "dw":
        out, into = (32, 32) if max(inputs, outputs) <= 32 else (64, small(inputs))
        tiles = ceil(outputs, out) * ceil(inputs, into)
        parts = min(max(1, 256 // tiles), ceil(pixels, 512))
        blocks, resident, steps = tiles * parts, 1 if into == 64 else 2, ceil(pixels, 32 * parts)
        flop, warps = 18 * 32 * out * into, into * out // 1024 * 3
        shared = warps * 2 * (out + 3 * 1024 // out) * 32 + 32 * (out + into) * 2
        beside = parts * inputs * outputs * 9 * 4 * 2 / MEMORY
    else:
        inputs, outputs = (outputs, inputs) if part == "dx" else (inputs, outputs)
        cols = 128 if outputs > 64 else small(outputs)
        rows, wide = (256, 64) if cols == 128 else (512, cols)
        blocks, resident = ceil(pixels, rows) * ceil(outputs, cols), 2 if cols == 32 else 1
        steps, flop = 9 * ceil(inputs, 32), 2 * rows * cols * 32
        shared = 8 * 2 * (64 + wide) * 32 + cols * 64 + (rows + 2 * side + 2) * 64 // 9
        beside = 0
    products = steps * flop / (FLOP["bf16"] * WARP_PRODUCTS)
    reads = steps * shared / 128
    waves = ceil(blocks, SMS * resident) * resident
    least = 18 * pixels * inputs * outputs / (SMS * FLOP["bf16"] * WARP_PRODUCTS)
    traffic = (2 * pixels * (inputs + outputs) + 18 * inputs * outputs) / MEMORY
    return least, waves * products - least, waves * max(0, reads - products), beside, traffic


def convolutions(clock):
    print("\n| convolution | products, ms | memory, ms | forward: ms, TFLOP/s | dx | dw "
          "| dw's parts, ms |\n|---|---|---|---|---|---|---|")
    step = 0
    for times, *shape in CONVOLUTIONS:
        images, side, inputs, outputs = shape
        flop, cells = 18 * images * side**2 * inputs * outputs, []
        for part in ["forward", "dx", "dw"]:
            least, uneven, reads, beside, traffic = convolution(*shape, part)
            total = max((least + uneven + reads) / clock, traffic) + beside + 2 * LAUNCH
            step += times * total
            cells.append(f"{total * 1e3:.3f}, {flop / total / 1e12:.0f}")
        print(f"| conv2d {images}x{side}x{side} {inputs}x{outputs} | {least / clock * 1e3:.3f} "
              f"| {traffic * 1e3:.3f} | {' | '.join(cells)} | {beside * 1e3:.3f} |")
    print(f"\nAll of ResNet-50's, forward and backward: {step * 1e3:.1f} ms.")


def measured(folder, name, kernels):
    import gpu_table

    turns = gpu_table.Turns(folder, name.split()[0].replace("contrastive", "loss"))
    return turns.time(name, f"roclip {kernels}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clock", type=float, default=1.75, help="GHz under load")
    parser.add_argument("--rate", type=float, default=790.0,
                        help="TFLOP/s of a long product in bf16; 0: as the clock allows")
    parser.add_argument("folder", nargs="?")
    arguments = parser.parse_args()
    model = Model(arguments.clock * 1e9, arguments.rate * 1e12)
    print(f"Tensor cores at {arguments.clock} GHz, {100 * model.sustained:.0f} % of their rate.\n")
    last = "| measured " if arguments.folder else ""
    print(f"| operation | kernels | products, ms | added to them, % | sum, ms | TFLOP/s "
          f"| of cuBLASLt {last}|")
    print("|" + "---|" * (8 if last else 7))
    for name, kernels, flop, alone, out, how in cases(model):
        least = out.parts.pop("products")
        added = [f"{100 * seconds / least:.1f} {cause}" for cause, seconds in out.parts.items()
                 if seconds > least / 2000]
        total = least + out.total()
        cells = [name, f"{kernels}, tiles of {how['tile']}, {how['strips']} strips",
                 f"{least * 1e3:.3f}", ", ".join(added), f"{total * 1e3:.3f}",
                 f"{flop / total / 1e12:.0f}", f"{100 * alone / total:.0f} %"]
        if arguments.folder:
            time = measured(arguments.folder, name, kernels)
            cells.append(f"{time:.3f}" if time else "")
        print("| " + " | ".join(cells) + " |")
    convolutions(model.clock)


if __name__ == "__main__":
    main()
