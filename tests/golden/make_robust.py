"""Golden values of the loss, the optimiser, the schedules and whole runs of RoCLIP's variants.

Command:  python tests/golden/make_robust.py            (from the root of the repository)
Versions: Python 3.11, torch 2.15.0 (CPU, float64, one thread), open_clip_torch 3.3.0
Writes:   robust_loss.json, robust_adamw.json, robust_schedule.json,
          robust_run_{clip,paper,official,roclip}.json

The runs are written from the description of the method, with autograd and torch.optim.AdamW. Each
is made twice, the second time with each initial parameter off by a relative 1e-15, up or down at
random (about ten roundings of float64): the largest difference that follows, "drift", says how far
honest differences in rounding may carry.
"""

import json
import math
import pathlib

import torch
import torch.nn.functional as F
from open_clip_train import scheduler

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
HERE = pathlib.Path(__file__).parent


def flat(tensor):
    return tensor.detach().reshape(-1).tolist()


def write(name, value):
    (HERE / name).write_text(json.dumps(value, separators=(",", ":"), sort_keys=True) + "\n")


def symmetric(logits):
    own = torch.arange(len(logits))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


# ---------------------------------------------------------------- loss and its gradients


def loss_case(name, image, text, scale, substitutes=None):
    image, text = image.clone().requires_grad_(), text.clone().requires_grad_()
    scale = torch.tensor(scale, requires_grad=True)
    targets = F.normalize(text, dim=1) if substitutes is None else substitutes
    loss = symmetric(scale.exp() * F.normalize(image, dim=1) @ targets.T)
    loss.backward()
    return {
        "name": name,
        "width": image.shape[1],
        "image": flat(image),
        "text": flat(text),
        "logit_scale": scale.item(),
        "substitutes": None if substitutes is None else flat(substitutes),
        "loss": loss.item(),
        "d_image": flat(image.grad),
        "d_text": flat(torch.zeros_like(text) if text.grad is None else text.grad),
        "d_logit_scale": scale.grad.item(),
    }


def losses():
    g = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(shape, generator=g)
    image, text = 3 * draw(7, 5), 0.2 * draw(7, 5)
    twins = text.clone()
    twins[4] = twins[1]
    twins[6] = twins[1]
    pool = F.normalize(draw(11, 5), dim=1)
    raw = 32 * pool
    picks = torch.tensor([2, 2, 9, 0, 2, 10, 5])
    init, most = math.log(1 / 0.07), math.log(100)
    return [
        loss_case("own", image, text, init),
        loss_case("own, scale 100", image, text, most),
        loss_case("own, twins, scale 100", image, twins, most),
        loss_case("own, scale 1", image, text, 0.0),
        loss_case("one pair", image[:1], text[:1], init),
        loss_case("matched, one row picked by three", image, text, init, pool[picks]),
        loss_case("matched, all the same row", image, text, init, pool[picks * 0]),
        loss_case("matched, rows of norm 32, scale 100", image, text, most, raw[picks]),
    ]


# ---------------------------------------------------------------- AdamW

SHAPES = {
    "logit_scale": (),
    "visual.proj": (3, 2),
    "visual.gain": (3,),
    "visual.ln.weight": (2,),
    "text_projection": (2, 2),
    "text.bias": (2,),
}


def decays(rule, name, tensor):
    named = any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
    return not named and (rule == "by_name" or tensor.ndim >= 2)


def groups(rule, params, weight_decay):
    yes = [p for n, p in params.items() if decays(rule, n, p)]
    no = [p for n, p in params.items() if not decays(rule, n, p)]
    return [{"params": yes, "weight_decay": weight_decay}, {"params": no, "weight_decay": 0.0}]


def adamw_case(rule, beta2, eps, weight_decay, clip):
    g = torch.Generator().manual_seed(2)
    params = {n: torch.randn(s, generator=g).requires_grad_() for n, s in SHAPES.items()}
    optimizer = torch.optim.AdamW(
        groups(rule, params, weight_decay), lr=1.0, betas=(0.9, beta2), eps=eps
    )
    case = {"rule": rule, "beta1": 0.9, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
    case |= {"clip": clip, "initial": [x for p in params.values() for x in flat(p)], "steps": []}
    for step in range(12):
        lr = 0.01 * (step + 1)
        for p in params.values():
            p.grad = torch.randn(p.shape, generator=g) * (0.1, 3.0, 0.5)[step % 3]
        grads = [x for p in params.values() for x in flat(p.grad)]
        limit = math.inf if clip is None else clip
        norm = torch.nn.utils.clip_grad_norm_(list(params.values()), limit)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        values = [x for p in params.values() for x in flat(p)]
        case["steps"].append({"lr": lr, "grads": grads, "norm": norm.item(), "params": values})
    return case


# ---------------------------------------------------------------- schedules


class Dummy:
    param_groups = [{"lr": 0.0}]


def schedules():
    cases = []
    for warmup, total, cooldown, power, end in [
        (0, 10, 4, 1.0, 0.0),
        (5, 20, 7, 1.0, 1e-5),
        (3, 12, 12, 2.0, 0.0),
        (20, 10, 2, 1.0, 0.0),
        (10, 33, 1, 0.5, 1e-4),
    ]:
        args = (Dummy(), 5e-4, warmup, total)
        functions = {
            "cosine": scheduler.cosine_lr(*args),
            "const": scheduler.const_lr(*args),
            "const-cooldown": scheduler.const_lr_cooldown(*args, cooldown, power, end),
        }
        for kind, function in functions.items():
            case = {"kind": kind, "lr": 5e-4, "warmup": warmup, "total": total}
            case |= {"cooldown": cooldown, "power": power, "end": end}
            cases.append(case | {"values": [function(step) for step in range(total)]})
    shifted = scheduler.cosine_lr(Dummy(), 5e-4, 5, 20)  # one epoch of five steps too many
    case = {"kind": "cosine", "lr": 5e-4, "warmup": 5, "total": 20}
    case |= {"cooldown": 0, "power": 1.0, "end": 0.0, "values": [shifted(s) for s in range(25)]}
    return cases + [case]


# ---------------------------------------------------------------- whole runs

BATCH, POOL, EPOCHS, STEPS, EVERY, WIDTH = 6, 13, 4, 4, 2, 4
LR, WARMUP, WEIGHT_DECAY, EPS = 0.05, 5, 0.1, 1e-6
RUN_SHAPES = {
    "visual.proj": (WIDTH, 5),
    "visual.gain": (WIDTH,),
    "visual.bias": (WIDTH,),
    "text_projection": (WIDTH, 6),
    "text.gain": (WIDTH,),
    "text.bias": (WIDTH,),
    "logit_scale": (),
}


def tower(x, proj, gain, bias):
    return (x @ proj.T) * gain + bias


class Pool:
    """What lookups return; the search is by cosine, whatever the length of a row."""

    def __init__(self, objective, rows):
        self.objective, self.head = objective, 0
        self.rows = list(rows) if objective == "official" else []

    def lookup(self, queries):
        keys = F.normalize(torch.stack(self.rows), dim=1)
        cosines = queries @ keys.T
        score, index = cosines.max(dim=1)
        return torch.stack(self.rows)[index], index, score

    def insert(self, rows):
        if self.objective == "official":
            if self.head + len(rows) >= POOL:
                self.rows[self.head :] = rows[: POOL - self.head]
                self.head = 0
            else:
                self.rows[self.head : self.head + len(rows)] = rows
                self.head += len(rows)
            return
        for row in rows:
            self.rows[self.head : self.head + 1] = [row]
            self.head = (self.head + 1) % POOL


def is_matched(objective, epoch, pool):
    if objective == "clip" or epoch % EVERY != 0:
        return False
    return {
        "paper": len(pool.rows) > 0,
        "official": True,
        "roclip": epoch > 1 and len(pool.rows) == POOL,
    }[objective]


def run(objective, noise):
    g = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(shape, generator=g).float().double()
    params = {n: draw(*s) for n, s in RUN_SHAPES.items()}
    start = 0.02 if objective == "paper" else math.log(1 / 0.07)  # low, to meet the clamp
    params["logit_scale"] = torch.tensor(start)
    gaussian = draw(POOL, WIDTH)
    coins = torch.Generator().manual_seed(4)
    for n, p in params.items():
        signs = torch.randint(0, 2, p.shape, generator=coins) * 2 - 1
        params[n] = (p * (1 + noise * signs)).requires_grad_()
    image_side = {n: p for n, p in params.items() if not n.startswith("text")}
    text_side = {n: p for n, p in params.items() if n.startswith("text")}
    rule = "by_name" if objective == "official" else "by_shape"
    image_optimizer, text_optimizer = (
        torch.optim.AdamW(groups(rule, side, WEIGHT_DECAY), lr=1.0, betas=(0.9, 0.98), eps=EPS)
        for side in (image_side, text_side)
    )
    pool = Pool(objective, gaussian)
    golden = {"initial": [x for p in params.values() for x in flat(p)], "gaussian": flat(gaussian)}
    golden |= {"batch": BATCH, "pool": POOL, "epochs": EPOCHS, "steps_per_epoch": STEPS}
    golden |= {"every": EVERY, "lr": LR, "warmup": WARMUP, "weight_decay": WEIGHT_DECAY}
    golden |= {"eps": EPS, "beta1": 0.9, "beta2": 0.98, "steps": [], "clamped": 0}
    for epoch in range(1, EPOCHS + 1):
        for i in range(STEPS):
            step = STEPS * (epoch - 1) + i
            count = step + STEPS if objective == "official" else step
            total = STEPS * EPOCHS
            if count < WARMUP:
                lr = LR * (count + 1) / WARMUP
            else:
                lr = LR * (1 + math.cos(math.pi * (count - WARMUP) / (total - WARMUP))) / 2
            x, y = draw(BATCH, 5), draw(BATCH, 6)
            image = F.normalize(tower(x, *list(params.values())[0:3]), dim=1)
            text = F.normalize(tower(y, *list(params.values())[3:6]), dim=1)
            record = {"x": flat(x), "y": flat(y), "lr": lr, "epoch": epoch}
            matched = is_matched(objective, epoch, pool)
            targets = text
            if matched:
                targets, index, score = pool.lookup(image.detach())
                record |= {"index": index.tolist(), "score": flat(score)}
            loss = symmetric(params["logit_scale"].exp() * image @ targets.T)
            if {"clip": False, "official": epoch % EVERY == 0}.get(objective, True):
                pool.insert([row.clone() for row in text.detach()])
            for p in params.values():
                p.grad = None
            loss.backward()
            for p in params.values():
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            norm = torch.stack([p.grad.norm() for p in params.values()]).norm()
            frozen = matched and objective == "roclip"
            for optimizer in (image_optimizer,) if frozen else (image_optimizer, text_optimizer):
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.step()
            with torch.no_grad():
                golden["clamped"] += int(params["logit_scale"].item() < 0)
                params["logit_scale"].clamp_(0, math.log(100))
            record |= {"loss": loss.item(), "norm": norm.item(), "head": pool.head}
            record |= {"params": [v for p in params.values() for v in flat(p)]}
            record |= {"rows": [v for row in pool.rows for v in flat(row)]}
            golden["steps"].append(record)
    return golden


def largest_difference(a, b):
    worst = 0.0
    for one, other in zip(a["steps"], b["steps"]):
        assert one.get("index") == other.get("index")
        for key in ("loss", "norm", "params", "rows", "score"):
            xs, ys = one.get(key, []), other.get(key, [])
            xs, ys = (xs, ys) if isinstance(xs, list) else ([xs], [ys])
            worst = max([worst] + [abs(x - y) / max(1, abs(x)) for x, y in zip(xs, ys)])
    return worst


def main():
    write("robust_loss.json", losses())
    cases = [("by_shape", 0.98, 1e-6, 0.2, 1.0), ("by_name", 0.999, 1e-8, 0.1, None)]
    cases = [adamw_case(*case) for case in cases]
    write("robust_adamw.json", {"shapes": list(SHAPES.items()), "cases": cases})
    write("robust_schedule.json", schedules())
    for objective in ("clip", "paper", "official", "roclip"):
        golden = run(objective, 0.0)
        golden["drift"] = largest_difference(golden, run(objective, 1e-15))
        matched = sum("index" in step for step in golden["steps"])
        print(objective, "drift", golden["drift"], "clamped", golden["clamped"], "matched", matched)
        write(f"robust_run_{objective}.json", golden)


if __name__ == "__main__":
    main()
