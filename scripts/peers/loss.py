"""CLIP's loss over N pairs on one GPU: its value and its gradients, both directions; and CyCLIP's
two terms.

open_clip's ClipLoss under bf16 autocast, as open_clip trains, eager and compiled; the same by hand
in chunks of rows, which never holds all logits; Inf-CL, Liger and Cut Cross-Entropy, whose one
direction is called for each. `products` are the four matrix products that it takes at least, with
nothing between them. All get the same unit rows, exact in bf16.
"""

import math

import torch

from .pool import unit

# What `benches/ops.rs` has; names must be the same there.
GPU = [(1024, 512), (32_768, 512), (32_768, 1024), (65_536, 512), (65_536, 1024), (262_144, 512)]
TINY = [(259, 33)]
LOGIT_SCALE = math.log(100)  # what training ends with
CHUNK = 1 << 28  # logits of a chunk
CYCLIC = 0.25, 0.25  # weights in and across modalities
SAMPLE = 64


class Pairs:
    """Leaves: embeddings and the scale."""

    def __init__(self, images, texts):
        self.images, self.texts = (x.detach().requires_grad_(True) for x in (images, texts))
        self.scale = torch.tensor(LOGIT_SCALE, device=images.device, requires_grad=True)

    def leaves(self):
        return [self.images, self.texts, self.scale]

    def typed(self, dtype):
        """The same numbers as other leaves."""
        return Pairs(self.images.to(dtype), self.texts.to(dtype))


def trained(loss, pairs):
    """A call: the loss and its gradients."""

    def call():
        value = loss(pairs.images, pairs.texts, pairs.scale)
        return value, *torch.autograd.grad(value, pairs.leaves())

    return call


def clip_loss():
    """open_clip's where it can be imported, else the plain one, and which it is."""
    try:
        from open_clip.loss import ClipLoss

        who, loss = "open_clip", ClipLoss()
    except ImportError:
        from . import plain_clip

        who, loss = "plain", plain_clip.loss

    def call(images, texts, scale):
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            return loss(images, texts, scale.exp())

    return who, call


def chunks(n):
    rows = max(1, CHUNK // n)
    return [slice(at, min(at + rows, n)) for at in range(0, n, rows)]


def forward_part(rows, cols, s):
    logits = s * (rows @ cols.t()).float()
    return logits.logsumexp(1), logits.logsumexp(0)


def backward_part(rows, cols, s, row_lse, col_lse, with_cols=True):
    logits = s * (rows @ cols.t()).float()
    p = torch.exp(logits - row_lse[:, None]) + torch.exp(logits - col_lse)
    weights = p.to(rows.dtype)
    return weights @ cols, weights.t() @ rows if with_cols else None, (p * logits).sum()


class ByHand:
    """All pairs, one chunk of rows at a time: products as the inputs are, the rest in float32; a
    pair's own logit on its own."""

    def __init__(self, compiled=False):
        self.parts = forward_part, backward_part
        if compiled:
            torch._dynamo.reset()
            self.parts = [torch.compile(part, dynamic=False) for part in self.parts]

    def forward(self, images, texts, scale):
        n, s = len(images), scale.exp()
        row_lse = torch.empty(n, device=images.device)
        col_lse = torch.full((n,), -math.inf, device=images.device)
        for part in chunks(n):
            row_lse[part], some = self.parts[0](images[part], texts, s)
            col_lse = torch.logaddexp(col_lse, some)
        own = s * (images.float() * texts.float()).sum(1)
        return row_lse, col_lse, own

    def backward(self, images, texts, scale, row_lse, col_lse, own, with_cols=True):
        n, s = len(images), scale.exp()
        dimages = torch.empty_like(images)
        dtexts = -2 * images.float() if with_cols else None
        dscale = -2 * own.sum()
        for part in chunks(n):
            drows, dcols, some = self.parts[1](images[part], texts, s, row_lse[part], col_lse,
                                               with_cols)
            dimages[part] = s / (2 * n) * (drows.float() - 2 * texts[part].float())
            if with_cols:
                dtexts += dcols
            dscale += some
        if with_cols:
            dtexts = (dtexts * (s / (2 * n))).to(texts.dtype)
        return dimages, dtexts, dscale / (2 * n)

    def both(self, *leaves):
        row_lse, col_lse, own = sums = self.forward(*leaves)
        value = (row_lse.mean() + col_lse.mean() - 2 * own.mean()) / 2
        return value, *self.backward(*leaves, *sums)


def products(images, texts):
    """Those of `ByHand`."""
    n, parts = len(images), chunks(len(images))
    block = torch.empty(parts[0].stop, n, device=images.device, dtype=images.dtype)
    rows, cols = torch.empty_like(images), torch.empty_like(texts)

    def call():
        for part in parts:
            weights = block[: part.stop - part.start]
            torch.mm(images[part], texts.t(), out=weights)
            torch.mm(images[part], texts.t(), out=weights)
            torch.mm(weights, texts, out=rows[part])
            torch.mm(weights.t(), images[part], out=cols)

    return call


def both_ways(cross_entropy):
    """Of `cross_entropy(inputs, classes, labels)`, which forms and forgets the logits."""

    def loss(images, texts, scale):
        labels = torch.arange(len(images), device=images.device)
        s = scale.exp()
        scaled = [(s * x.float()).to(x.dtype) for x in (images, texts)]
        return (cross_entropy(scaled[0], texts, labels)
                + cross_entropy(scaled[1], images, labels)) / 2

    return loss


def inf_cl():
    from inf_cl import cal_flash_loss

    def loss(images, texts, scale):
        labels = torch.arange(len(images), device=images.device)
        ways = [cal_flash_loss(*pair, labels, scale.exp())
                for pair in [(images, texts), (texts, images)]]
        return (ways[0].mean() + ways[1].mean()) / 2

    return loss


def liger():
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    one = LigerFusedLinearCrossEntropyLoss(accum_dtype=torch.float32)
    return both_ways(lambda inputs, classes, labels: one(classes, inputs, labels))


def liger_hopper():
    from liger_kernel.ops.cutedsl.ops.fused_scaled_cross_entropy_sm90 import (
        LigerFusedScaledCrossEntropySM90Function as one,
    )

    return both_ways(lambda *operands: one.apply(*operands).mean())


def cut_cross_entropy():
    from cut_cross_entropy import linear_cross_entropy

    return both_ways(linear_cross_entropy)


# Name, what makes the loss, and the embeddings' type.
LIBRARIES = [
    ("Inf-CL", inf_cl, torch.float32),
    ("Liger", liger, torch.bfloat16),
    ("Liger SM90", liger_hopper, torch.bfloat16),
    ("Cut Cross-Entropy", cut_cross_entropy, torch.bfloat16),
]


def reference(pairs):
    """A judge of values and gradients, which knows those in float32."""
    with torch.no_grad():
        value, *grads = ByHand().both(*pairs.leaves())
    some = [grads[0][:SAMPLE].clone(), grads[1][:SAMPLE].clone(), grads[2]]

    def judge(result):
        off = abs(result[0].item() - value.item())
        worst = max(((found[:SAMPLE] if found.ndim else found).float() - right).norm().item()
                    / right.norm().item() for found, right in zip(result[1:], some))
        return {"loss_off": off, "gradient_off": worst,
                "judged": f"loss off {off:.1e}, gradient {100 * worst:.2f} %"}

    return judge


def run(table, arguments):
    torch.manual_seed(1)
    device = arguments.device
    for n, width in TINY if arguments.tiny else GPU:
        size = f"{n}x{n}x{width}"
        name = f"contrastive both {size}"
        low = Pairs(unit(n, width, device), unit(n, width, device))
        pairs = low.typed(torch.float32)
        judge = reference(pairs)
        plain = [leaf.detach() for leaf in low.leaves()]
        table.add(f"products {size}", "torch", lambda: products(*plain[:2]))
        who, whole = clip_loss()
        for peer, loss in table.variants(whole):
            table.add(name, f"{who} {peer}", lambda: trained(loss, pairs), judge)
        for compiled in [False, True][: 1 + table.compiles()]:
            in_chunks(table, size, plain, judge, compiled)
        for peer, library, dtype in LIBRARIES:
            typed = low if dtype == torch.bfloat16 else pairs
            table.add(name, peer, lambda: trained(library(), typed), judge, slow=True)
        cyclic(table, size, low)


def in_chunks(table, size, plain, judge, compiled):
    peer = "torch in chunks" + ", compile" * compiled
    hand = ByHand(compiled)
    sums = ByHand().forward(*plain)
    for part, call in [
        ("forward", lambda: hand.forward(*plain)),
        ("backward", lambda: hand.backward(*plain, *sums)),
        ("backward rows", lambda: hand.backward(*plain, *sums, with_cols=False)),
    ]:
        table.add(f"contrastive {part} {size}", peer, lambda: call)
    table.add(f"contrastive both {size}", peer, lambda: lambda: hand.both(*plain), judge)


def cyclic_part(images, texts, all_images, all_texts):
    """Of some rows: their share of the loss, and what their gradients are multiples of."""
    inner, cross = CYCLIC
    in_modal = (images @ all_images.t()).float() - (texts @ all_texts.t()).float()
    cross_modal = (images @ all_texts.t()).float() - (texts @ all_images.t()).float()
    loss = inner * in_modal.square().sum() + cross * cross_modal.square().sum()
    e, m = (inner * in_modal).to(images.dtype), (cross * cross_modal).to(images.dtype)
    return loss, e @ all_images + m @ all_texts, e @ all_texts + m @ all_images


def cyclic_in_chunks(part):
    def call(images, texts):
        n, value = len(images), torch.zeros((), device=images.device)
        dimages, dtexts = torch.empty_like(images), torch.empty_like(texts)
        for some in chunks(n):
            loss, by_image, by_text = part(images[some], texts[some], images, texts)
            value += loss / n
            dimages[some], dtexts[some] = 4 / n * by_image, -4 / n * by_text
        return value, dimages, dtexts

    return call


def cyclic(table, size, pairs):
    """CyCLIP's terms as its authors' program has them, by autograd, and in chunks by hand."""

    def terms(images, texts, _):
        inner, cross = CYCLIC
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            across = images @ texts.t()
            in_modal = images @ images.t() - texts @ texts.t()
        n = len(images)
        return (inner * in_modal.float().square().sum()
                + cross * (across - across.t()).float().square().sum()) / n

    leaves = [pairs.images.detach(), pairs.texts.detach()]
    value, *grads = cyclic_in_chunks(cyclic_part)(*(leaf.float() for leaf in leaves))

    def judge(result):
        off = abs(result[0].item() - value.item()) / value.item()
        worst = max(((found.float() - right).norm() / right.norm()).item()
                    for found, right in zip(result[1:], grads))
        return {"loss_off": off, "gradient_off": worst,
                "judged": f"loss off {off:.1e}, gradient {100 * worst:.2f} %"}

    def autograd(loss):
        def call():
            value = loss(pairs.images, pairs.texts, None)
            return value, *torch.autograd.grad(value, [pairs.images, pairs.texts])

        return call

    for peer, loss in table.variants(terms):
        table.add(f"cyclic {size}", peer, lambda: autograd(loss), judge)
    for peer, part in table.variants(cyclic_part):
        table.add(f"cyclic {size}", f"in chunks, {peer}",
                  lambda: lambda: cyclic_in_chunks(part)(*leaves), judge)
