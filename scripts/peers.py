#!/usr/bin/env python3
"""PyTorch at the shapes of `benches/ops.rs` and `benches/step.rs`, on the same GPU.

    peers.py ops   [--json FILE] [--device cuda|cpu] [--tiny] [--no-compile] [--budget SECONDS]
    peers.py step  [the same]

`ops` times every operation that has a counterpart, eager and through torch.compile, attention with
each backend of scaled_dot_product_attention. `step` times a training step of CLIP in bf16 autocast
with fused AdamW: open_clip's model and loss where it can be imported, else `plain_clip.py`.
Captions have the lengths of `benches/step.rs` and are padded to 77, as open_clip does.

Times are medians of samples of many calls between two CUDA events. What a peer refuses is kept with
its reason. Needs PyTorch 2.6 or newer.
"""

import argparse
import json
import statistics
import time

HEAD = 64
SAMPLE = 0.02
EACH = 0.33


class Clock:
    """Milliseconds of a call on the device."""

    def __init__(self, torch, device):
        self.torch, self.on_gpu = torch, device == "cuda"

    def once(self, calls, body):
        if self.on_gpu:
            begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(calls):
                body()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) / calls
        begin = time.perf_counter()
        for _ in range(calls):
            body()
        return (time.perf_counter() - begin) * 1e3 / calls

    def times(self, body):
        for _ in range(3):
            estimate = self.once(1, body)
        calls = max(1, min(100, int(SAMPLE * 1e3 / max(estimate, 1e-6))))
        times, begin = [], time.perf_counter()
        while len(times) < 3 or time.perf_counter() - begin < EACH and len(times) < 99:
            times.append(self.once(calls, body))
        return times


def figures(times):
    ordered = sorted(times)
    return {
        "median_ms": statistics.median(ordered),
        "least_ms": ordered[0],
        "most_ms": ordered[-1],
        "samples": len(ordered),
    }


class Table:
    """Rows of results; a peer that fails is a row with a reason."""

    def __init__(self, torch, arguments):
        self.torch, self.arguments, self.rows = torch, arguments, []
        self.clock = Clock(torch, arguments.device)
        self.end = time.monotonic() + arguments.budget

    def compiles(self):
        return not self.arguments.no_compile

    def add(self, name, peer, make):
        """`make` returns the body to time."""
        row = {"name": name, "peer": peer}
        try:
            if "compile" in peer and time.monotonic() > self.end:
                raise TimeoutError(f"the budget of {self.arguments.budget} s was spent")
            row.update(figures(self.clock.times(make())))
            print(f"{name:44} {peer:16} {row['median_ms']:9.3f} ms", flush=True)
        except Exception as error:  # a peer may lack anything; that is a result, too
            row["error"] = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            print(f"{name:44} {peer:16} {row['error']}", flush=True)
        self.rows.append(row)
        if self.arguments.device == "cuda":
            self.torch.cuda.empty_cache()

    def variants(self, function):
        """Eager, and compiled."""
        yield "eager", function
        if self.compiles():
            self.torch._dynamo.reset()
            yield "compile", self.torch.compile(function, dynamic=False)

    def forward(self, name, function, *inputs):
        for peer, call in self.variants(function):
            self.add(name, peer, lambda: lambda: call(*inputs))

    def both(self, names, function, inputs, grad, about=None):
        """Forward and backward apart; gradients of `about`, all inputs if it is not given."""
        for peer, call in self.variants(function):
            self.forward_backward(names, peer, call, inputs, grad, about)

    def forward_backward(self, names, peer, call, inputs, grad, about=None):
        about = inputs if about is None else about

        def backward():
            for tensor in about:
                tensor.requires_grad_(True)
            out = call(*inputs)
            return lambda: self.torch.autograd.grad(out, about, grad, retain_graph=True)

        def forward():
            for tensor in about:
                tensor.requires_grad_(False)
            return lambda: call(*inputs)

        self.add(names[0], peer, forward)
        self.add(names[1], peer, backward)


# What `benches/ops.rs` calls Shapes::GPU and Shapes::QUICK; names must be the same there.
GPU = {
    "linears": [
        ("qkv", 51_200, 768, 2304),
        ("proj", 51_200, 768, 768),
        ("fc1", 51_200, 768, 3072),
        ("fc2", 51_200, 3072, 768),
        ("patch", 50_176, 3072, 768),
        ("text qkv", 14_336, 512, 1536),
        ("text proj", 14_336, 512, 512),
        ("text fc1", 14_336, 512, 2048),
        ("text fc2", 14_336, 2048, 512),
    ],
    "layernorm": (51_200, 768),
    "gelu": 51_200 * 3072,
    "attentions": [
        ("image", 1024, 50, 12, False),
        ("image", 256, 197, 12, False),
        ("text", 1024, 14, 8, True),
        ("text", 1024, 77, 8, True),
    ],
    "contrastives": [(1024, 512), (32_768, 512)],
    "pools": [(512, 20_000, 1024), (4096, 100_000, 1024)],
    "captions": (1024, 14, 49_408, 512),
    "images": (1024, 224, 32, 768),
    "embeddings": (32_768, 512),
    "parameters": 151_277_376,
    "product": 8192,
}
TINY = {
    "linears": [("odd", 197, 391, 67)],
    "layernorm": (67, 131),
    "gelu": 33_001,
    "attentions": [("full", 3, 67, 3, False), ("causal", 5, 77, 2, True)],
    "contrastives": [(259, 33)],
    "pools": [(67, 515, 33)],
    "captions": (5, 7, 131, 19),
    "images": (3, 12, 4, 19),
    "embeddings": (67, 33),
    "parameters": 33_333,
    "product": 192,
}


class Maker:
    """Tensors on the device; the numbers do not matter, but zeros would use less power."""

    def __init__(self, torch, device):
        self.torch, self.device = torch, device

    def __call__(self, *shape, dtype=None):
        dtype = dtype or self.torch.bfloat16
        return self.torch.empty(shape, device=self.device, dtype=dtype).uniform_(-1, 1)

    def ids(self, values):
        return self.torch.tensor(list(values), device=self.device)


def ops(torch, table, arguments):
    shapes, make = (TINY if arguments.tiny else GPU), Maker(torch, arguments.device)
    for part in [products, norms, attentions, losses, tables, pictures, parameters]:
        part(torch, table, shapes, make)


def products(torch, table, shapes, make):
    functional = torch.nn.functional
    side = shapes["product"]
    a, b = make(side, side), make(side, side)
    table.add(f"product {side}", "eager", lambda: lambda: a @ b)
    for title, rows, inputs, outputs in shapes["linears"]:
        name = f"{title} {rows}x{inputs}x{outputs}"
        x, dy = make(rows, inputs), make(rows, outputs)
        w, bias = make(outputs, inputs), make(outputs)
        table.add(f"linear forward {name}", "eager", lambda: lambda: functional.linear(x, w, bias))
        table.add(f"linear dx {name}", "eager", lambda: lambda: dy @ w)
        table.add(f"linear dw {name}", "eager", lambda: lambda: dy.t() @ x)
        table.add(f"linear db {name}", "eager", lambda: lambda: dy.sum(0))


def norms(torch, table, shapes, make):
    functional = torch.nn.functional
    rows, width = shapes["layernorm"]
    inputs = [make(rows, width), make(width), make(width)]
    names = [f"layernorm {part} {rows}x{width}" for part in ("forward", "backward")]
    normalise = lambda x, gain, bias: functional.layer_norm(x, (width,), gain, bias, 1e-5)
    table.both(names, normalise, inputs, make(rows, width))

    count = shapes["gelu"]
    for kind, function in [
        ("Erf", lambda x: functional.gelu(x)),
        ("Quick", lambda x: x * torch.sigmoid(1.702 * x)),
    ]:
        names = [f"gelu {part} {kind} {count}" for part in ("forward", "backward")]
        table.both(names, function, [make(count)], make(count))

    count, width = shapes["embeddings"]
    x, dy = make(count, width).requires_grad_(True), make(count, width)
    for peer, call in table.variants(lambda x: functional.normalize(x, dim=-1)):
        body = lambda: lambda: torch.autograd.grad(call(x), x, dy)
        table.add(f"l2norm {count}x{width}", peer, body)

    index = make.ids(range(count - 1, -1, -1))
    source, picked = make(count, width), make(count, width)

    def pick(source, index, picked):
        gathered = source.index_select(0, index)
        return gathered, torch.zeros_like(source).index_copy_(0, index, picked)

    table.forward(f"rows {count}x{width}", pick, source, index, picked)


def attentions(torch, table, shapes, make):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    attend = torch.nn.functional.scaled_dot_product_attention
    for title, sequences, length, heads, causal in shapes["attentions"]:
        width = heads * HEAD
        qkv = make(sequences, length, 3, heads, HEAD)
        # views into one tensor, as open_clip has them; their gradients stay apart
        inputs = [part.transpose(1, 2).detach() for part in qkv.unbind(2)]
        grad = make(sequences, length, heads, HEAD).transpose(1, 2)
        names = [f"attention {part} {title} {sequences}x{length}x{width}"
                 for part in ("forward", "backward")]
        for peer, backend in [
            ("flash", SDPBackend.FLASH_ATTENTION),
            ("cudnn", SDPBackend.CUDNN_ATTENTION),
            ("efficient", SDPBackend.EFFICIENT_ATTENTION),
        ]:
            def call(q, k, v):
                with sdpa_kernel(backend):
                    return attend(q, k, v, is_causal=causal)

            table.forward_backward(names, peer, call, inputs, grad)
        if table.compiles():
            torch._dynamo.reset()
            call = torch.compile(lambda q, k, v: attend(q, k, v, is_causal=causal), dynamic=False)
            table.forward_backward(names, "compile", call, inputs, grad)


def losses(torch, table, shapes, make):
    def both_ways(rows, cols):
        logits = (rows @ cols.t()).float()
        return torch.logsumexp(logits, 1), torch.logsumexp(logits, 0), logits.diagonal()

    def of_rows(rows, cols, row_lse, col_lse, of_cols=False):
        logits = (rows @ cols.t()).float()
        p = torch.exp(logits - row_lse[:, None]) + torch.exp(logits - col_lse[None, :])
        p = p - 2 * torch.eye(len(rows), device=p.device)
        scale, p = (p * logits).sum(), p.to(cols.dtype)
        return p @ cols, p.t() @ rows if of_cols else None, scale

    def of_both(*inputs):
        return of_rows(*inputs, of_cols=True)

    for n, width in shapes["contrastives"]:
        rows, cols = make(n, width), make(n, width)
        lse = torch.full((n,), 40.0, device=rows.device)
        inputs = (rows, cols, lse, lse)
        table.forward(f"contrastive forward {n}x{n}x{width}", both_ways, rows, cols)
        table.forward(f"contrastive backward {n}x{n}x{width}", of_both, *inputs)
        table.forward(f"contrastive backward rows {n}x{n}x{width}", of_rows, *inputs)
    for count, size, width in shapes["pools"]:
        queries, ring, new = make(count, width), make(size, width), make(count, width)
        slots = make.ids((size - 1 + i) % size for i in range(count))
        nearest = lambda queries, ring: (queries @ ring.t()).max(1)
        table.forward(f"pool matching {count}x{size}x{width}", nearest, queries, ring)
        insert = lambda: lambda: ring.index_copy_(0, slots, new)
        table.add(f"pool insert {count}x{width}", "eager", insert)


def tables(torch, table, shapes, make):
    sequences, length, vocab, width = shapes["captions"]
    tokens = sequences * length
    ids = make.ids(i * 7919 % vocab for i in range(tokens)).view(sequences, length)
    embed = lambda words, places: torch.nn.functional.embedding(ids, words) + places
    names = [f"embedding {part} {tokens}x{width}" for part in ("forward", "backward")]
    inputs = [make(vocab, width), make(length, width)]
    table.both(names, embed, inputs, make(sequences, length, width))


def pictures(torch, table, shapes, make):
    images, side, patch, width = shapes["images"]
    grid = side // patch
    pixels = make(images, 3, side, side, dtype=torch.float32)

    def unfold(pixels):
        parts = pixels.view(images, 3, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
        return parts.reshape(images, grid * grid, 3 * patch * patch).to(torch.bfloat16)

    table.forward(f"patch_embedding unfold {images}x{side}", unfold, pixels)

    def embed(patches, first, places):
        return torch.cat([first.expand(images, 1, width), patches], 1) + places

    inputs = [make(images, grid * grid, width), make(width), make(grid * grid + 1, width)]
    inputs = [tensor.requires_grad_(True) for tensor in inputs]
    grad = make(images, grid * grid + 1, width)
    for peer, call in table.variants(embed):
        body = lambda: lambda: torch.autograd.grad(call(*inputs), inputs, grad)
        table.add(f"patch_embedding tokens {images}x{grid * grid + 1}", peer, body)


def parameters(torch, table, shapes, make):
    count = shapes["parameters"]
    # about as many tensors as the model has
    sizes = [len(range(i, count, 302)) for i in range(302)]
    flat = make(count, dtype=torch.float32)
    table.forward(f"cast {count}", lambda x: x.to(torch.bfloat16), flat)
    table.forward(f"grad_norm {count}", torch.linalg.vector_norm, flat)
    weights = [torch.nn.Parameter(part) for part in flat.split(sizes)]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    norms = lambda: torch.nn.utils.get_total_norm([w.grad for w in weights], foreach=True)
    table.add(f"grad_norm {count}", "tensor by tensor", lambda: norms)
    optimizer = torch.optim.AdamW(
        weights, lr=1e-6, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, fused=True
    )
    table.add(f"adamw {count}", "fused", lambda: optimizer.step)
    copies = [weight.detach().to(torch.bfloat16) for weight in weights]

    def step_and_cast():
        optimizer.step()
        torch._foreach_copy_(copies, [weight.detach() for weight in weights])

    table.add(f"adamw {count}", "fused and cast", lambda: step_and_cast)


def length(number, n):
    """Tokens of caption `n` of batch `number`, as `benches/step.rs` draws them."""
    state, draws = (number * 1_000_003 + n) & 0xFFFFFFFF, []
    for _ in range(2):
        state = (state * 1_664_525 + 1_013_904_223) & 0xFFFFFFFF
        draws.append((state >> 8) % 17)
    return 8 + min(draws)


# name: pairs, image side, patch, (width, layers) of the image tower and of the text tower, D
MODELS = {"ViT-B-32": (1024, 224, 32, (768, 12), (512, 12), 512),
          "ViT-B-16": (256, 224, 16, (768, 12), (512, 12), 512)}
TINY_MODELS = {"tiny": (4, 32, 16, (128, 2), (64, 2), 32)}
CONTEXT, BATCHES, STEPS = 77, 4, 20


def clip(torch, name, side, patch, vision, text, embed_dim):
    """open_clip's model and loss, if it has one of that name, else the plain ones."""
    try:
        if name not in MODELS:
            raise ImportError
        import open_clip
        from open_clip.loss import ClipLoss
    except ImportError:
        import plain_clip

        return "plain PyTorch", *plain_clip.build(side, patch, vision, text, embed_dim)
    return f"open_clip {open_clip.__version__}", open_clip.create_model(name), ClipLoss()


def batches(torch, pairs, side):
    """Batches in pinned memory, as a loader would have them."""
    made = []
    for number in range(BATCHES):
        images = torch.rand(pairs, 3, side, side) * 2 - 1
        tokens = torch.zeros(pairs, CONTEXT, dtype=torch.long)
        for n in range(pairs):
            t = length(number, n)
            tokens[n, :t] = (n * 31 + torch.arange(t) * 7 + number) % 40_000
            tokens[n, 0], tokens[n, t - 1] = 49_406, 49_407
        pin = torch.cuda.is_available()
        made.append((images.pin_memory(), tokens.pin_memory()) if pin else (images, tokens))
    return made


def step(torch, table, arguments):
    if arguments.device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
    models = TINY_MODELS if arguments.tiny else MODELS
    for name, (pairs, side, patch, vision, text, embed_dim) in models.items():
        data = batches(torch, pairs, side)
        for compiled in [False, True] if table.compiles() else [False]:
            peer = "compile" if compiled else "eager"
            try:
                who, model, loss = clip(torch, name, side, patch, vision, text, embed_dim)
                peer = f"{who}, {peer}"
                row = train(torch, table, arguments, data, model, loss, compiled)
                row["pairs_per_s"] = pairs / row["median_ms"] * 1e3
                print(f"{name} {peer}: {row['median_ms']:.2f} ms, "
                      f"{row['pairs_per_s']:.0f} pairs/s", flush=True)
            except Exception as error:
                row = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
                print(f"{name} {peer}: {row['error']}", flush=True)
            table.rows.append({"name": name, "pairs": pairs, "peer": peer, **row})
            if arguments.device == "cuda":
                torch.cuda.empty_cache()


def train(torch, table, arguments, data, model, loss, compiled):
    device = arguments.device
    if compiled and time.monotonic() > table.end:
        raise TimeoutError(f"the budget of {arguments.budget} s was spent")
    model = model.to(device).train()
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-6, betas=(0.9, 0.98), eps=1e-6, fused=True)
    if compiled:
        torch._dynamo.reset()
    run = torch.compile(model, dynamic=False) if compiled else model

    def one(batch):
        images, tokens = (tensor.to(device, non_blocking=True) for tensor in batch)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16):
            value = loss(*run(images, tokens))
        value.backward()
        optimizer.step()

    for batch in data:
        one(batch)
    steps = 2 if arguments.tiny else STEPS
    return figures([table.clock.once(1, lambda: one(data[i % BATCHES])) for i in range(steps)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=["ops", "step"])
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes to try the script with")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--budget", type=float, default=360.0,
                        help="seconds after which nothing more is compiled")
    arguments = parser.parse_args()
    try:
        import torch
    except ImportError:
        raise SystemExit("peers.py: no PyTorch for this python; pip install torch")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("peers.py: PyTorch sees no GPU; --device cpu --tiny tries the script out")
    # a compiled backward may run again and again
    import torch._functorch.config as functorch

    functorch.donated_buffer = False
    table = Table(torch, arguments)
    {"ops": ops, "step": step}[arguments.part](torch, table, arguments)
    if arguments.json:
        on = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
        with open(arguments.json, "w") as file:
            found = {"device": on, "torch": torch.__version__, "rows": table.rows}
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
