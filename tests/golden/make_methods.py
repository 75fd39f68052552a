"""Golden values of the losses of CyCLIP, CleanCLIP and SafeCLIP's risky pairs, in float64.

    python tests/golden/make_methods.py        (rewrites methods.json and its line of MANIFEST)

Made with torch 2.15 (CPU). Deterministic. Written from the papers' descriptions: whole matrices and
autograd, no formula of a gradient.
"""

import hashlib
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F

HERE = Path(__file__).parent
GENERATOR = Path(__file__).name


def clip_loss(images, texts, scale):
    logits, own = scale * images @ texts.T, torch.arange(len(images))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def cyclip(images, texts, scale, in_modal, cross_modal):
    """Symmetric cross-entropy, and consistency of similarities within and across modalities."""
    pairs = len(images)
    within = images @ images.T - texts @ texts.T
    across = images @ texts.T - (images @ texts.T).T
    consistency = in_modal * within.square().sum() + cross_modal * across.square().sum()
    return clip_loss(images, texts, scale) + consistency / pairs


def cleanclip(images, texts, scale, clip, unimodal):
    """`images` and `texts` hold the pairs as they are, and then their augmented views."""
    (image, other_image), (text, other_text) = images.chunk(2), texts.chunk(2)
    own = torch.arange(len(image))
    within_images = F.cross_entropy(scale * image @ other_image.T, own)
    within_texts = F.cross_entropy(scale * text @ other_text.T, own)
    return clip * clip_loss(image, text, scale) + unimodal * (within_images + within_texts) / 2


def nearest(rows, pool):
    """The rows of the pool at the smallest distance, as constants; of an empty one the rows themselves."""
    rows = rows.detach()
    return pool[torch.cdist(rows, pool).argmin(dim=1)] if len(pool) else rows


def safeclip_risky(images, texts, scale, image_pool, text_pool):
    """`images` and `texts` hold two augmented views of each pair. The neighbour of the first finds the second."""
    def within(rows, pool):
        first, second = rows.chunk(2)
        exps = torch.exp(scale * nearest(first, pool) @ second.T)
        return -torch.log(exps.diagonal() / exps.sum(dim=1)).mean()

    return (within(images, image_pool) + within(texts, text_pool)) / 2


METHODS = {"cyclip": (cyclip, 1), "cleanclip": (cleanclip, 2), "safeclip": (safeclip_risky, 2)}


def case(method, pairs, width, scale, weights, pool=0):
    loss_of, views = METHODS[method]
    draw = lambda: torch.randn(views * pairs, width, dtype=torch.float64) * 2
    image = draw()
    text = 0.5 * image + draw()  # captions that have something to do with their pictures
    log_scale = torch.tensor(math.log(scale), dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (image, text, log_scale)]
    units = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    pools = [F.normalize(torch.randn(pool, width, dtype=torch.float64), dim=-1) for _ in range(2)]
    more = pools if method == "safeclip" else weights
    loss = loss_of(*units, log_scale.exp(), *more)
    d_image, d_text, d_scale = torch.autograd.grad(loss, leaves)
    flat = lambda x: x.detach().flatten().tolist()
    return {
        "method": method, "pairs": pairs, "width": width, "weights": weights,
        "image": flat(image), "text": flat(text), "logit_scale": log_scale.item(),
        "loss": loss.item(), "d_image": flat(d_image), "d_text": flat(d_text), "d_logit_scale": d_scale.item(),
        "pools": [flat(rows) for rows in pools],
    }


def main():
    torch.manual_seed(20261123)
    cases = [
        case("cyclip", 1, 1, 10.0, [0.25, 0.25]),
        case("cyclip", 6, 5, 1 / 0.07, [0.25, 0.25]),
        case("cyclip", 12, 7, 30.0, [0.5, 0.0]),
        case("cyclip", 12, 3, 100.0, [0.0, 2.0]),
        case("cleanclip", 1, 2, 10.0, [1.0, 1.0]),
        case("cleanclip", 6, 5, 1 / 0.07, [1.0, 1.0]),
        case("cleanclip", 12, 7, 30.0, [0.5, 0.0]),
        case("cleanclip", 12, 3, 100.0, [0.0, 2.0]),
        case("safeclip", 1, 2, 10.0, [0.0, 1.0], 1),
        case("safeclip", 6, 5, 1 / 0.07, [0.0, 1.0], 0),
        case("safeclip", 6, 5, 1 / 0.07, [0.0, 1.0], 9),
        case("safeclip", 12, 3, 100.0, [0.0, 1.0], 20),
    ]
    path = HERE / "methods.json"
    path.write_text(json.dumps(cases) + "\n")
    manifest = HERE / "MANIFEST"
    lines = [line for line in manifest.read_text().splitlines() if line.split()[2] != GENERATOR]
    lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}  {GENERATOR}")
    manifest.write_text("".join(line + "\n" for line in sorted(lines, key=lambda line: line.split()[1])))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
