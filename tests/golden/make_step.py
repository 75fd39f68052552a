"""Golden values of whole training: a tiny open_clip model, its loss, torch's AdamW.

    python tests/golden/make_step.py tests/golden

Made with open_clip_torch 3.3.0, torch 2.15 (CPU), numpy. Deterministic. Written from the
description of the method; model, weights and noise are those of make_encode.py.

For the objectives `clip` and `roclip`: 3 epochs of 4 steps on 6 pairs, K = 2, a pool of 9 captions,
warm-up of 3 steps and a cosine, gradients clipped to norm 0.5, all in float64. Stored per step: loss,
gradient norm, learning rate, inverse temperature, chosen rows; at the end, of every parameter, the inner
products with ones, with itself and with noise. `drift` is what the same run differs by when its weights
begin one part in 2^40 larger: how far rounding may be carried. `half` is what torch's own training in
bfloat16 (float32 weights under autocast) is off by at most, as parts of the float64 figure, over three
runs whose weights begin 0 and one part in 2^12 larger and smaller.

step_methods.json: in the same form, runs of CyCLIP, CleanCLIP and SafeCLIP, whose second views are those of
the batch VIEW steps on; their losses are those of make_methods.py. SafeCLIP's first epoch is unimodal, its
second is one of CLIP's loss at a tenth of the full rate, its third begins with two unimodal steps and ends with
two of CLIP's loss; each modality has a pool of 9 first views.

step_locked.json: in the same form, runs in which open_clip locks parts of the model before they begin;
`locked` names the parameters it locks.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from make_encode import CONFIG, END, START, model, noise
from make_methods import clip_loss, cleanclip, cyclip, safeclip_risky
from open_clip_train.scheduler import cosine_lr

PAIRS, EPOCHS, STEPS, POOL = 6, 3, 4, 9
LR, WARMUP, WD, CLIP_NORM = 0.002, 3, 0.2, 0.5
LENGTHS = [5, 13, 2, 9, 7, 3]
PIXELS, TOKENS, PROBE = 2000, 3000, 4000
VIEW = 100
METHODS = {
    "cyclip": (1, lambda images, texts, scale: cyclip(images, texts, scale, 0.25, 0.25)),
    "cleanclip": (2, lambda images, texts, scale: cleanclip(images, texts, scale, 1.0, 1.0)),
    "safeclip": (2, safeclip_risky),
}


def batch(step):
    side, context = CONFIG["vision_cfg"]["image_size"], CONFIG["text_cfg"]["context_length"]
    pixels = noise(PIXELS + step, PAIRS * 3 * side * side).reshape(PAIRS, 3, side, side)
    # Each picture has a brightness and a contrast of its own, so that their features differ.
    pixels = np.stack([(n + 1) / 2 * image + n - 2.5 for n, image in enumerate(pixels)])
    draws = ((noise(TOKENS + step, PAIRS * context) + 1) * 32768).astype(np.int64) % START
    ids = np.zeros((PAIRS, context), dtype=np.int64)
    for n, length in enumerate(LENGTHS):
        ids[n, :length] = draws[n * context :][:length]
        ids[n, 0], ids[n, length - 1] = START, END
    return torch.from_numpy(pixels), torch.from_numpy(ids)


def decays(name, param):
    return param.ndim >= 2 and not any(part in name for part in ["bn", "ln", "bias", "logit_scale"])


class Pool:
    """A ring of caption embeddings, empty at first."""

    def __init__(self, rows):
        self.rows, self.head, self.filled = rows, 0, 0

    def nearest(self, images):
        live = self.rows[: self.filled]
        index = (images @ live.T).argmax(dim=1)
        return index, live[index]

    def insert(self, texts):
        for row in texts:
            self.rows[self.head] = row
            self.head = (self.head + 1) % POOL
            self.filled = min(self.filled + 1, POOL)


def is_text(name):
    return not name.startswith("visual.") and name != "logit_scale"


def tensors(clip):
    """Parameters in the order of the state dict, and running statistics behind them."""
    running = [(name, buffer) for name, buffer in clip.named_buffers() if "running" in name]
    return [*clip.named_parameters(), *running]


def train(objective, grow, dtype=torch.float64, half=False, lock=lambda clip: None):
    clip = model(False, dtype)
    with torch.no_grad():
        for param in clip.parameters():
            param.mul_(1 + grow)
    lock(clip)
    params = {name: param for name, param in clip.named_parameters() if param.requires_grad}
    groups = [
        {"params": [p for n, p in params.items() if not decays(n, p)], "weight_decay": 0.0},
        {"params": [p for n, p in params.items() if decays(n, p)], "weight_decay": WD},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.98), eps=1e-6)
    schedule = cosine_lr(optimizer, LR, WARMUP, EPOCHS * STEPS)
    pool, image_pool = (Pool(torch.zeros(POOL, CONFIG["embed_dim"], dtype=dtype)) for _ in range(2))
    steps = []
    for step in range(EPOCHS * STEPS):
        epoch = step // STEPS + 1
        views, loss_of = METHODS.get(objective, (1, None))
        unimodal = epoch == 1 or epoch == 3 and step % STEPS < 2
        if objective == "safeclip" and not unimodal:
            views, loss_of = 1, clip_loss
        seen = [batch(step + view * VIEW) for view in range(views)]
        pixels, ids = (torch.cat(parts) for parts in zip(*seen))
        schedule(step)
        if objective == "safeclip" and epoch == 2:
            for group in optimizer.param_groups:
                group["lr"] = LR * 0.1
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            images = F.normalize(clip.encode_image(pixels.to(dtype)), dim=-1).to(dtype)
            texts = F.normalize(clip.encode_text(ids), dim=-1).to(dtype)
        matched = objective == "roclip" and epoch % 2 == 0 and pool.filled == POOL
        index, targets = pool.nearest(images.detach()) if matched else (None, texts)
        if loss_of is None:
            logits = clip.logit_scale.exp() * images @ targets.T
            own = torch.arange(PAIRS)
            loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        else:
            pools = [p.rows[: p.filled] for p in (image_pool, pool)] if loss_of is safeclip_risky else []
            loss = loss_of(images, texts, clip.logit_scale.exp(), *pools)
        loss.backward()
        if matched:
            # A frozen text tower: AdamW passes over parameters without a gradient.
            assert all(p.grad is None for n, p in params.items() if is_text(n))
        norm = torch.nn.utils.clip_grad_norm_(params.values(), CLIP_NORM)
        optimizer.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(0, np.log(100))
        if objective != "safeclip" or unimodal:
            pool.insert(texts.detach()[:PAIRS])
            image_pool.insert(images.detach()[:PAIRS])
        steps.append({
            "loss": loss.item(),
            "grad_norm": norm.item(),
            "lr": optimizer.param_groups[0]["lr"],
            "scale": clip.logit_scale.exp().item(),
            "index": index.tolist() if matched else None,
        })
    finals = {}
    for stream, (name, tensor) in enumerate(tensors(clip)):
        x = tensor.detach().numpy().ravel()
        x = x.astype(np.float64)
        finals[name] = [float(x @ v) for v in (np.ones(x.size), x, noise(PROBE + stream, x.size))]
    return steps, finals


def drift(a, b):
    """Largest relative difference of two runs, over all figures."""
    (steps_a, finals_a), (steps_b, finals_b) = a, b
    pairs = [(s[k], t[k]) for s, t in zip(steps_a, steps_b) for k in ("loss", "grad_norm", "scale")]
    pairs += [(x, y) for n in finals_a for x, y in zip(finals_a[n], finals_b[n])]
    return max(abs(x - y) / max(1.0, abs(x)) for x, y in pairs)


def half(objective, exact):
    """Largest relative difference of loss and of gradient norm when torch trains in bfloat16."""
    runs = [train(objective, grow, torch.float32, True)[0] for grow in (0.0, 2.0**-12, -(2.0**-12))]
    def off(key):
        return max(abs(s[key] - e[key]) / e[key] for run in runs for s, e in zip(run, exact))
    return {"loss": off("loss"), "grad_norm": off("grad_norm")}


def exact_run(objective, **how):
    """A run without a word on bfloat16."""
    run = train(objective, 0.0, **how)
    return {
        "steps": run[0],
        "finals": run[1],
        "drift": drift(run, train(objective, 2.0**-40, **how)),
        "half": {"loss": 0.0, "grad_norm": 0.0},
    }


def lock_image(groups):
    return lambda clip: clip.lock_image_tower(unlocked_groups=groups)


def lock_text(layers):
    return lambda clip: clip.lock_text_tower(unlocked_layers=layers)


def lock_both(clip):
    lock_image(0)(clip)
    lock_text(0)(clip)


LOCKED = {
    "image but 1": ("clip", lock_image(1)),
    "image but 3": ("roclip", lock_image(3)),
    "text but 2": ("roclip", lock_text(2)),
    "text": ("roclip", lock_text(0)),
    "both": ("clip", lock_both),
}


def locked_names(lock):
    clip = model(False, torch.float64)
    lock(clip)
    return [name for name, param in clip.named_parameters() if not param.requires_grad]


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = {}
    for objective in ["clip", "roclip"]:
        run = train(objective, 0.0)
        out[objective] = {
            "steps": run[0],
            "finals": run[1],
            "drift": drift(run, train(objective, 2.0**-40)),
            "half": half(objective, run[0]),
        }
    path = Path(sys.argv[1]) / "step.json"
    path.write_text(json.dumps(out, indent=1) + "\n")
    path = Path(sys.argv[1]) / "step_methods.json"
    out = {name: exact_run(name) for name in METHODS}
    for name, run in out.items():
        run["half"] = half(name, run["steps"])
    path.write_text(json.dumps(out, indent=1) + "\n")
    out = {}
    for name, (objective, lock) in LOCKED.items():
        out[name] = exact_run(objective, lock=lock) | {"locked": locked_names(lock)}
    path = Path(sys.argv[1]) / "step_locked.json"
    path.write_text(json.dumps(out, indent=1) + "\n")
