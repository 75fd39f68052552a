"""A training step of CLIP, as `benches/step.rs` has it."""

import time

import torch

from .table import figures

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


def clip(name, side, patch, vision, text, embed_dim):
    """open_clip's model and loss, if it has one of that name, else the plain ones."""
    try:
        if name not in MODELS:
            raise ImportError
        import open_clip
        from open_clip.loss import ClipLoss
    except ImportError:
        from . import plain_clip

        return "plain PyTorch", *plain_clip.build(side, patch, vision, text, embed_dim)
    return f"open_clip {open_clip.__version__}", open_clip.create_model(name), ClipLoss()


def batches(pairs, side):
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


def run(table, arguments):
    if arguments.device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
    models = TINY_MODELS if arguments.tiny else MODELS
    for name, (pairs, side, patch, vision, text, embed_dim) in models.items():
        data = batches(pairs, side)
        for compiled in [False, True] if table.compiles() else [False]:
            peer = "compile" if compiled else "eager"
            try:
                who, model, loss = clip(name, side, patch, vision, text, embed_dim)
                peer = f"{who}, {peer}"
                row = train(table, arguments, data, model, loss, compiled)
                row["pairs_per_s"] = pairs / row["median_ms"] * 1e3
                print(f"{name} {peer}: {row['median_ms']:.2f} ms, "
                      f"{row['pairs_per_s']:.0f} pairs/s", flush=True)
            except Exception as error:
                row = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
                print(f"{name} {peer}: {row['error']}", flush=True)
            table.rows.append({"name": name, "pairs": pairs, "peer": peer, **row})
            if arguments.device == "cuda":
                torch.cuda.empty_cache()


def train(table, arguments, data, model, loss, compiled):
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
