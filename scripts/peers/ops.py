"""Every operation of `benches/ops.rs` that has a counterpart."""

import torch

from . import convolutions

HEAD = 64

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
    "pools": [(512, 20_000, 1024), (4096, 100_000, 1024)],
    "captions": (1024, 14, 49_408, 512),
    "images": (1024, 224, 32, 768),
    "batchnorms": [(256, 112, 32), (256, 56, 256), (1024, 7, 2048)],
    "avg_pool": (256, 56, 256),
    "attention_pool": (1024, 50, 32, 64),
    "embeddings": (32_768, 512),
    "parameters": 151_277_376,
    "product": 8192,
}
TINY = {
    "linears": [("odd", 197, 391, 67)],
    "layernorm": (67, 131),
    "gelu": 33_001,
    "attentions": [("full", 3, 67, 3, False), ("causal", 5, 77, 2, True)],
    "pools": [(67, 515, 33)],
    "captions": (5, 7, 131, 19),
    "images": (3, 12, 4, 19),
    "batchnorms": [(3, 13, 19), (1, 9, 72)],
    "avg_pool": (3, 6, 19),
    "attention_pool": (3, 7, 3, 11),
    "embeddings": (67, 33),
    "parameters": 33_333,
    "product": 192,
}


class Maker:
    """Tensors on the device; the numbers do not matter, but zeros would use less power."""

    def __init__(self, device):
        self.device = device

    def __call__(self, *shape, dtype=None):
        dtype = dtype or torch.bfloat16
        return torch.empty(shape, device=self.device, dtype=dtype).uniform_(-1, 1)

    def ids(self, values):
        return torch.tensor(list(values), device=self.device)


def run(table, arguments):
    """Every operation but matching and the loss, which have files of their own."""
    shapes, make = (TINY if arguments.tiny else GPU), Maker(arguments.device)
    for part in [products, norms, attentions, inserts, tables, pictures, resnets, parameters]:
        part(table, shapes, make)
    convolutions.run(table, arguments.tiny, make)


def products(table, shapes, make):
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


def norms(table, shapes, make):
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
    dot = lambda a, b: (a * b).sum(-1, dtype=torch.float32)
    table.forward(f"rows dot {count}x{width}", dot, source, picked)


def attentions(table, shapes, make):
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


def inserts(table, shapes, make):
    for count, size, width in shapes["pools"]:
        ring, new = make(size, width), make(count, width)
        slots = make.ids((size - 1 + i) % size for i in range(count))
        insert = lambda: lambda: ring.index_copy_(0, slots, new)
        table.add(f"pool insert {count}x{width}", "eager", insert)


def tables(table, shapes, make):
    sequences, length, vocab, width = shapes["captions"]
    tokens = sequences * length
    ids = make.ids(i * 7919 % vocab for i in range(tokens)).view(sequences, length)
    embed = lambda words, places: torch.nn.functional.embedding(ids, words) + places
    names = [f"embedding {part} {tokens}x{width}" for part in ("forward", "backward")]
    inputs = [make(vocab, width), make(length, width)]
    table.both(names, embed, inputs, make(sequences, length, width))


def pictures(table, shapes, make):
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


def resnets(table, shapes, make):
    """What CLIP's ResNet needs beside its convolutions; pictures lie channels last."""
    functional = torch.nn.functional
    last = lambda images, side, width: make(images, side, side, width).permute(0, 3, 1, 2)
    for images, side, width in shapes["batchnorms"]:
        single = lambda: make(width, dtype=torch.float32)
        gain, bias, mean, var = single(), single(), single(), single().abs()
        normalise = lambda x, gain, bias: functional.batch_norm(x, mean, var, gain, bias, True)
        plain = lambda x, gain, bias: functional.relu(normalise(x, gain, bias))
        added = lambda x, gain, bias, more: functional.relu(normalise(x, gain, bias) + more)
        inputs, size = [last(images, side, width), gain, bias], f"{images * side**2}x{width}"
        for kind, function, more in [("", plain, 0), (" residual", added, 1)]:
            names = [f"batchnorm {part}{kind} {size}" for part in ("forward", "backward")]
            every = inputs + [last(images, side, width)] * more
            table.both(names, function, every, last(images, side, width))

    images, side, width = shapes["avg_pool"]
    names = [f"avg_pool2d {part} {images}x{side}x{width}" for part in ("forward", "backward")]
    pool = lambda x: functional.avg_pool2d(x, 2)
    table.both(names, pool, [last(images, side, width)], last(images, side // 2, width))

    images, tokens, heads, dim = shapes["attention_pool"]
    size, grad = f"{images}x{tokens}x{heads * dim}", make(images, heads, 1, dim)
    names = [f"attention_pool {part} {size}" for part in ("forward", "backward")]
    rows = lambda count: make(images, count, heads, dim).transpose(1, 2).detach()
    attend = functional.scaled_dot_product_attention
    table.both(names, attend, [rows(1), rows(tokens), rows(tokens)], grad)

    def embed(pixels, places):
        return torch.cat([pixels.mean(1, keepdim=True), pixels], 1) + places

    inputs = [make(images, tokens - 1, heads * dim), make(tokens, heads * dim)]
    inputs = [tensor.requires_grad_(True) for tensor in inputs]
    grad = make(images, tokens, heads * dim)
    for peer, call in table.variants(embed):
        body = lambda: lambda: torch.autograd.grad(call(*inputs), inputs, grad)
        table.add(f"attention_pool tokens {size}", peer, body)


def parameters(table, shapes, make):
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
