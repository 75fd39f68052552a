"""Golden values of the backend's operations, in float64.

Command:  python tests/golden/make_ops.py        (from the repository root; rewrites ops_*.safetensors
          and their lines of MANIFEST)
Versions: Python 3, torch 2.15 (CPU), safetensors.

Inputs are float32 numbers, so every device starts from the same values. A float output `t` comes
with `t.naive`, the largest error that the same PyTorch code makes in float32: the bound of the tests
is made of it. Tensors are named `case/tensor`; gradients have a `d` in front.
"""

import hashlib
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

HERE = Path(__file__).parent
GENERATOR = Path(__file__).name


def rand(*shape, scale=1.0):
    return torch.randn(*shape, dtype=torch.float32) * scale


def evaluate(function, inputs, cotangents, dtype):
    """Outputs of `function` and the gradients of its float inputs, in `dtype`."""
    cast = {k: v.to(dtype).requires_grad_() if v.is_floating_point() else v for k, v in inputs.items()}
    outputs = function(**cast)
    total = sum((outputs[k] * c.to(dtype)).sum() for k, c in cotangents.items())
    result = {k: v.detach() for k, v in outputs.items()}
    if cotangents:
        wanted = {k: v for k, v in cast.items() if v.is_floating_point()}
        grads = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
        result |= {"d" + k: g for k, g in zip(wanted, grads) if g is not None}
    return result


def add(file, case, function, cotangents=(), **inputs):
    """Stores inputs, cotangents (as `d<output>`), outputs, gradients, and the naive errors."""
    shapes = evaluate(function, inputs, {}, torch.float64)
    seeds = {k: rand(*shapes[k].shape) for k in cotangents}
    exact = evaluate(function, inputs, seeds, torch.float64)
    naive = evaluate(function, inputs, seeds, torch.float32)
    tensors = dict(inputs) | {"d" + k: v for k, v in seeds.items()} | exact
    for k, v in exact.items():
        assert v.dtype == torch.float64 and v.isfinite().all(), (case, k)
        tensors[k + ".naive"] = (naive[k].double() - v).abs().max().reshape(1)
    for k, v in tensors.items():
        file[f"{case}/{k}"] = v.contiguous().clone()


def linear():
    file = {}
    for case, rows, i, o, bias, residual, transposed in [
        ("one", 1, 1, 1, True, True, False),
        ("plain", 17, 33, 9, False, False, False),
        ("bias", 5, 7, 3, True, False, False),
        ("residual", 6, 4, 11, False, True, False),
        ("rows", 259, 2, 3, True, True, False),
        ("outputs", 2, 3, 261, True, True, False),
        ("projection", 19, 13, 35, False, False, True),
        ("inputs", 2, 259, 3, True, False, True),
    ]:
        extra = {"b": rand(o)} if bias else {}
        extra |= {"residual": rand(rows, o)} if residual else {}

        def run(x, w, b=None, residual=None, transposed=transposed):
            y = x @ w if transposed else F.linear(x, w)
            y = y if b is None else y + b
            return {"y": y if residual is None else y + residual}

        w = rand(i, o) if transposed else rand(o, i)
        add(file, case, run, ["y"], x=rand(rows, i), w=w, **extra)
    return file


def layernorm():
    file = {}

    def run(x, gain, bias):
        mean = x.mean(-1)
        rstd = (x.var(-1, unbiased=False) + 1e-5).rsqrt()
        y = F.layer_norm(x, x.shape[-1:], gain, bias, 1e-5)
        return {"y": y, "mean": mean, "rstd": rstd}

    for case, rows, width in [("one", 1, 1), ("wide", 5, 131), ("tall", 67, 3), ("mid", 35, 19)]:
        add(file, case, run, ["y"], x=rand(rows, width, scale=2) + 0.5, gain=rand(width), bias=rand(width))
    constant = torch.full((2, 17), 3.25)
    add(file, "constant", run, ["y"], x=constant, gain=rand(17), bias=rand(17))
    return file


def gelu():
    file = {}
    x = torch.cat([torch.linspace(-14, 14, 1009), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 100, -100, 1e4, -1e4])])
    for case, points in [("many", x[:-4]), ("far", x[-4:]), ("one", x[700:701]), ("small", x[480:530])]:
        add(file, f"erf/{case}", lambda x: {"y": F.gelu(x)}, ["y"], x=points)
        add(file, f"quick/{case}", lambda x: {"y": x * torch.sigmoid(1.702 * x)}, ["y"], x=points)
    return file


def attention():
    file = {}
    for case, lens, heads, dim, causal, scale in [
        ("one", [1], 1, 1, False, 1),
        ("full", [3, 1, 65, 8], 2, 3, False, 1),
        ("causal", [5, 1, 66, 2], 3, 2, True, 1),
        ("peaky", [9, 17], 2, 5, True, 6),
        ("odd", [31], 1, 9, False, 2),
    ]:

        def run(qkv, lens=lens, heads=heads, dim=dim, causal=causal):
            out, lse = [], []
            for part in qkv.split(lens):
                q, k, v = part.view(-1, 3, heads, dim).permute(1, 2, 0, 3)
                scores = q @ k.transpose(-1, -2) / math.sqrt(dim)
                if causal:
                    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
                    scores = scores.masked_fill(hidden, -math.inf)
                attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
                assert torch.allclose(attended, scores.softmax(-1) @ v, rtol=1e-4, atol=1e-5)
                out.append((scores.softmax(-1) @ v).permute(1, 0, 2).reshape(-1, heads * dim))
                lse.append(scores.logsumexp(-1).transpose(0, 1))
            return {"out": torch.cat(out), "lse": torch.cat(lse)}

        add(file, case, run, ["out"], qkv=rand(sum(lens), 3 * heads * dim, scale=scale))
        file[f"{case}/cu_seqlens"] = torch.tensor([0] + lens).cumsum(0)
        file[f"{case}/heads"] = torch.tensor([heads])
    return file


def l2norm():
    file = {}

    def run(x):
        return {"y": F.normalize(x, dim=-1), "inv_norm": 1 / x.norm(dim=-1).clamp_min(1e-12)}

    for case, x in [("one", rand(1, 1)), ("some", rand(7, 37)), ("tall", rand(67, 3)), ("zero", torch.zeros(2, 5))]:
        add(file, case, run, ["y"], x=x)
    return file


def pool():
    file = {}
    for case, b, m, d in [("one", 1, 1, 1), ("tiles", 35, 519, 9), ("wide", 3, 5, 37), ("queries", 67, 2, 5)]:
        rows, queries = F.normalize(rand(m, d), dim=-1), F.normalize(rand(b, d), dim=-1)
        if case == "tiles":
            rows[20] = rows[300] = rows[7]  # a tie within a tile and one across tiles
            rows[3] = rows[518] = math.nan  # never wins
            queries[0], queries[1], queries[2] = rows[7], rows[0], rows[517]
            queries[33], queries[34] = rows[300], rows[256]
        scores = (queries.double() @ rows.double().T).nan_to_num(-9)
        for row in scores:  # float32 must not be able to choose another row, but for planted ties
            best = row.max()
            assert ((row == best) | (row < best - 1e-5)).all()
        index = (scores == scores.max(-1, keepdim=True).values).int().argmax(-1)
        if case == "tiles":
            assert index[[0, 1, 2, 33, 34]].tolist() == [7, 0, 517, 7, 256]
        score = scores.max(-1).values
        naive = (queries @ rows.T).nan_to_num(-9).max(-1).values
        error = (naive.double() - score).abs().max().reshape(1)
        file |= {f"{case}/{k}": v for k, v in dict(
            queries=queries, rows=rows, index=index, score=score).items()}
        file[f"{case}/score.naive"] = error
    return file


def contrastive():
    file = {}
    for case, n, g, offset, d, scale in [
        ("one", 1, 1, 0, 1, 10.0),
        ("part", 5, 11, 3, 7, 1 / 0.07),
        ("tiles", 37, 263, 225, 5, 20.0),
        ("hot", 35, 37, 1, 9, 100.0),
    ]:

        def run(images, texts, logit_scale, n=n, g=g, offset=offset):
            # the local rows have a scale of their own, so that its gradient is their part alone
            mine = (torch.arange(g) >= offset) & (torch.arange(g) < offset + n)
            whose = torch.where(mine, logit_scale, logit_scale.detach())
            logits = whose.exp()[:, None] * (images @ texts.T)
            target = torch.arange(g)
            loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
            row_lse, own = logits.logsumexp(1), logits.diagonal()
            return {"loss": loss, "lse": row_lse[mine], "own": own[mine], "col_lse": logits.logsumexp(0)}

        images, texts = F.normalize(rand(g, d), dim=-1), F.normalize(rand(g, d), dim=-1)
        texts = F.normalize(texts + 2 * images, dim=-1)
        single = {}
        add(single, case, run, [], images=images, texts=texts, logit_scale=torch.tensor([math.log(scale)]))

        def loss_only(**inputs):
            out = run(**inputs)
            return {"loss": out["loss"]}

        inputs = {k: single[f"{case}/{k}"] for k in ["images", "texts", "logit_scale"]}
        for dtype in [torch.float64, torch.float32]:
            grads = evaluate(loss_only, inputs, {"loss": torch.ones(())}, dtype)
            for k, v in [("drows", grads["dimages"][offset : offset + n]), ("dlogit_scale", grads["dlogit_scale"])]:
                if dtype == torch.float64:
                    single[f"{case}/{k}"] = v.clone()
                else:
                    error = (v.double() - single[f"{case}/{k}"]).abs().max().reshape(1)
                    single[f"{case}/{k}.naive"] = error
        single[f"{case}/loss"] = single[f"{case}/loss"].reshape(1)
        file |= single
        file[f"{case}/offset"] = torch.tensor([offset])
    return file


def cyclic():
    file = {}
    for case, n, g, offset, d, weights in [
        ("one", 1, 1, 0, 1, (0.25, 0.25)),
        ("part", 5, 11, 3, 7, (0.25, 0.25)),
        ("whole", 67, 67, 0, 9, (0.5, 0.0)),
        ("wide", 3, 8, 5, 131, (0.0, 2.0)),
    ]:

        def run(images, texts, n=n, g=g, offset=offset, weights=weights):
            u, v, w = images @ images.T, texts @ texts.T, images @ texts.T
            within, across = (u - v).square().sum(1), (w - w.T).square().sum(1)
            rows = (weights[0] * within + weights[1] * across) / g
            return {"loss": rows[offset : offset + n], "sum": rows.sum()}

        images = F.normalize(rand(g, d), dim=-1)
        texts = F.normalize(rand(g, d) + 2 * images, dim=-1)
        if case == "one":
            texts = -images  # else there is nothing to see
        single = {}
        add(single, case, run, [], images=images, texts=texts)
        for dtype in [torch.float64, torch.float32]:
            grads = evaluate(lambda **x: {"sum": run(**x)["sum"]}, {"images": images, "texts": texts}, {"sum": torch.ones(())}, dtype)
            for k in ["dimages", "dtexts"]:
                v = grads[k][offset : offset + n].contiguous()
                if dtype == torch.float64:
                    single[f"{case}/{k}"] = v
                else:
                    single[f"{case}/{k}.naive"] = (v.double() - single[f"{case}/{k}"]).abs().max().reshape(1)
        del single[f"{case}/sum"], single[f"{case}/sum.naive"]
        file |= single
        file[f"{case}/offset"] = torch.tensor([offset])
        file[f"{case}/weights"] = torch.tensor(weights, dtype=torch.float64)
    return file


def embedding():
    file = {}
    for case, lens, vocab, context, width in [
        ("one", [1], 1, 1, 1),
        ("some", [3, 1, 9, 2], 131, 9, 5),
        ("few", [7, 4], 3, 11, 17),
    ]:
        tokens = torch.randint(vocab, (sum(lens),))
        tokens[0], tokens[-1] = vocab - 1, 0
        places = torch.cat([torch.arange(n) for n in lens])

        def run(table, positions, tokens, places=places):
            return {"out": F.embedding(tokens, table) + F.embedding(places, positions)}

        add(file, case, run, ["out"], table=rand(vocab, width), positions=rand(context, width), tokens=tokens)
        file[f"{case}/cu_seqlens"] = torch.tensor([0] + lens).cumsum(0)
    return file


def patch_embedding():
    file = {}
    for case, n, side, patch, width in [("one", 1, 1, 1, 1), ("two", 2, 6, 2, 5), ("three", 3, 15, 3, 4), ("whole", 2, 4, 4, 3)]:
        images = rand(n, 3, side, side)
        kernel = rand(width, 3, patch, patch)
        unfolded = F.unfold(images, patch, stride=patch).transpose(1, 2)
        product = F.conv2d(images, kernel, stride=patch).flatten(2).transpose(1, 2)
        assert torch.allclose(unfolded @ kernel.flatten(1).T, product, atol=1e-4)

        def run(patches, class_, positions):
            first = class_.expand(patches.shape[0], 1, -1)
            return {"out": torch.cat([first, patches], 1) + positions}

        count = (side // patch) ** 2
        add(file, case, run, ["out"], patches=rand(n, count, width), class_=rand(width), positions=rand(count + 1, width))
        file[f"{case}/images"] = images
        file[f"{case}/unfolded"] = unfolded.contiguous()
        file[f"{case}/patch"] = torch.tensor([patch])
    return file


def grad_norm():
    file = {}
    for case, grads in [("one", rand(1)), ("few", rand(7)), ("many", rand(4099)), ("large", rand(67, scale=1e25))]:
        add(file, case, lambda grads: {"norm": grads.norm().reshape(1)}, grads=grads)
    return file


def adamw():
    """Three steps with clipping; the first 70 parameters decay, the last 61 do not."""
    file = {}
    start, gradients = rand(131), [rand(131, scale=s) for s in (1.0, 1e-3, 30.0)]
    file["start"] = start
    results = []
    for dtype in [torch.float64, torch.float32]:
        decay = start[:70].to(dtype).clone().requires_grad_()
        rest = start[70:].to(dtype).clone().requires_grad_()
        groups = [{"params": [decay], "weight_decay": 0.2}, {"params": [rest], "weight_decay": 0.0}]
        optimiser = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98), eps=1e-6)
        for step, gradient in enumerate(gradients, 1):
            decay.grad, rest.grad = gradient[:70].to(dtype).clone(), gradient[70:].to(dtype).clone()
            norm = torch.nn.utils.clip_grad_norm_([decay, rest], 5.0)
            if dtype == torch.float64:
                file[f"grads{step}"], file[f"norm{step}"] = gradient, norm.reshape(1)
            optimiser.step()
        state = [optimiser.state[p] for p in (decay, rest)]
        results.append({
            "weights": torch.cat([decay.detach(), rest.detach()]),
            "exp_avg": torch.cat([s["exp_avg"] for s in state]),
            "exp_avg_sq": torch.cat([s["exp_avg_sq"] for s in state]),
        })
    for k, exact in results[0].items():
        file[k] = exact
        file[k + ".naive"] = (results[1][k].double() - exact).abs().max().reshape(1)
    return file


def conv2d():
    """A case with `images` has pictures as they are loaded, one with `times` a batch of as many
    copies of `x` or `images`, of which there is the gradient by `w` alone. Gradients by `x` are
    only of stride 1."""
    file = {}
    for case, n, h, w, c, o, stride, times in [
        ("pixel", 2, 1, 1, 3, 2, 1, 1),
        ("row", 1, 1, 7, 1, 9, 1, 1),
        ("odd", 2, 5, 3, 9, 8, 1, 1),
        ("inputs", 1, 3, 2, 33, 3, 1, 1),
        ("outputs", 1, 2, 3, 2, 65, 1, 1),
        ("both", 1, 1, 2, 16, 8, 1, 1),
        ("half", 2, 4, 6, 5, 3, 2, 1),
        ("odd_half", 1, 5, 7, 16, 7, 2, 1),
        ("many", 1, 23, 19, 2, 1, 1, 24),
        ("picture", 2, 7, 6, 3, 9, 2, 1),
        ("pictures", 1, 26, 25, 3, 1, 2, 61),
    ]:

        def run(w, x=None, images=None, stride=stride, times=times):
            planes = x.permute(0, 3, 1, 2) if images is None else images
            planes = planes.repeat(times, 1, 1, 1)
            return {"y": F.conv2d(planes, w, stride=stride, padding=1).permute(0, 2, 3, 1)}

        inputs = {"images": rand(n, 3, h, w)} if "picture" in case else {"x": rand(n, h, w, c)}
        add(file, case, run, ["y"], w=rand(o, c, 3, 3), **inputs)
        unwanted = ["dimages"] + ["dx"] * (stride == 2 or times > 1) + ["y"] * (times > 1)
        for tensor in unwanted:
            file.pop(f"{case}/{tensor}", None)
            file.pop(f"{case}/{tensor}.naive", None)
        file[f"{case}/stride"] = torch.tensor([stride])
        file[f"{case}/times"] = torch.tensor([times])
    return file


def batchnorm():
    """A case with `running` is one of evaluation; `before` is what statistics run on from."""
    file = {}

    def far(shape):
        return rand(*shape) + 1000

    def constant(shape):
        x = rand(*shape)
        x[..., 1] = 3.25
        return x

    for case, shape, relu, residual, make in [
        ("one", (1, 1, 1, 3), False, False, None),
        ("two", (2, 1, 1, 1), False, False, None),
        ("plain", (3, 5, 2, 9), False, False, None),
        ("relu", (1, 5, 3, 17), True, False, None),
        ("both", (2, 5, 7, 6), True, True, None),
        ("residual", (2, 3, 1, 33), False, True, None),
        ("constant", (2, 3, 7, 3), True, True, constant),
        ("far", (5, 7, 3, 2), False, False, far),
        ("parts", (1, 7, 293, 1), False, False, None),
        ("running", (2, 3, 5, 9), False, False, None),
        ("running_one", (1, 1, 1, 5), True, False, None),
        ("running_both", (3, 5, 2, 8), True, True, None),
    ]:

        def pixels(planes):
            return planes.permute(0, 2, 3, 1).flatten(0, 2)

        def run(x, gain_bias, residual=None, before=None, running=None, shape=shape, relu=relu):
            planes, result = x.view(shape).permute(0, 3, 1, 2), {}
            if running is not None:
                y = F.batch_norm(planes, *running.detach(), *gain_bias)
            else:
                # of deviations: x.var(), which updates its mean as it goes, is less exact far from 0
                mean = x.mean(0)
                result = {"mean": mean, "var": (x - mean).square().mean(0)}
                if len(x) > 1:
                    y = F.batch_norm(planes, None, None, *gain_bias, True)
                else:  # batch_norm refuses a single row
                    gain, bias = gain_bias[:, None, :, None, None]
                    y = (planes - mean[:, None, None]) / 1e-5**0.5 * gain + bias
            if before is not None:
                for name, momentum in [("observed", 1.0), ("after", 0.1)]:
                    moved = before.detach().clone()
                    again = F.batch_norm(planes, *moved, *gain_bias, True, momentum)
                    assert torch.equal(again, y)
                    result[name] = moved
            y = pixels(y) if residual is None else pixels(y) + residual
            # so that float32 decides about every value as float64 does
            assert not relu or y.abs().min() > 1e-5
            return result | {"y": y.relu() if relu else y}

        rows, width = math.prod(shape[:3]), shape[3]
        extra = {"residual": rand(rows, width)} if residual else {}
        if "running" in case:
            extra["running"] = torch.stack([rand(width), rand(width).abs() + 0.1])
        elif rows > 1:
            extra["before"] = torch.stack([rand(width), rand(width).abs() + 0.1])
        x = (make or (lambda shape: 2 * rand(*shape) + 0.5))(shape).view(rows, width)
        add(file, case, run, ["y"], x=x, gain_bias=rand(2, width), **extra)
        if case == "parts":  # large, for its sums
            for tensor in ["y", "dx"]:
                del file[f"{case}/{tensor}"], file[f"{case}/{tensor}.naive"]
        file[f"{case}/relu"] = torch.tensor([int(relu)])
    return file


def avg_pool2d():
    file = {}
    for case, shape in [
        ("one", (1, 2, 2, 7)), ("some", (3, 4, 6, 5)), ("wide", (2, 2, 4, 33)), ("tall", (1, 14, 2, 8))
    ]:

        def run(x):
            return {"y": F.avg_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)}

        add(file, case, run, ["y"], x=rand(*shape))
    return file


def attention_pool():
    """`tokens/` is what goes in front of the attention, `attention/` is between the linear maps."""
    file = {}

    def tokens(pixels, positions):
        """[N, T - 1, C] and [T, C] to [T, N, C], as open_clip's AttentionPool2d makes them."""
        x = pixels.permute(1, 0, 2)
        return torch.cat([x.mean(dim=0, keepdim=True), x], dim=0) + positions[:, None, :]

    def attend(query, keys, values, heads, weights, biases):
        """Sequence first; three linear maps in front and none behind."""
        width = query.shape[-1]
        out, _ = F.multi_head_attention_forward(
            query, keys, values, width, heads, None, torch.cat(biases), None, None, False, 0.0,
            torch.eye(width, dtype=query.dtype), None, need_weights=False,
            use_separate_proj_weight=True,
            q_proj_weight=weights[0], k_proj_weight=weights[1], v_proj_weight=weights[2],
        )
        return out[0]

    for case, n, t, heads, dim, scale in [
        ("one", 1, 2, 1, 1, 1),
        ("some", 3, 5, 2, 7, 1),
        ("grid", 2, 10, 3, 4, 1),
        ("long", 1, 50, 2, 3, 1),
        ("wide", 2, 3, 1, 70, 1),
        ("peaky", 2, 10, 2, 5, 6),
    ]:
        width = heads * dim

        def embed(pixels, positions):
            all = tokens(pixels, positions).transpose(0, 1)
            return {"query": all[:, 0], "keys": all, "values": all}

        def run(query, keys, values, heads=heads, width=width, dim=dim):
            eye, zero = torch.eye(width, dtype=query.dtype), torch.zeros(width, dtype=query.dtype)
            first = [query[None], keys.transpose(0, 1), values.transpose(0, 1)]
            out = attend(*first, heads, [eye] * 3, [zero] * 3)
            q, k = query.unflatten(1, (heads, dim)), keys.unflatten(2, (heads, dim))
            scores = torch.einsum("nhd,nthd->nht", q, k) / math.sqrt(dim)
            return {"out": out, "lse": scores.logsumexp(-1)}

        part = f"tokens/{case}"
        add(file, part, embed, ["query", "keys", "values"],
            pixels=rand(n, t - 1, width), positions=rand(t, width))
        for role in ["query", "keys"]:  # the values are all tokens
            del file[f"{part}/{role}"], file[f"{part}/{role}.naive"]
        part = f"attention/{case}"
        add(file, part, run, ["out"], query=rand(n, width, scale=scale),
            keys=rand(n, t, width, scale=scale), values=rand(n, t, width))
        file[f"{part}/heads"] = torch.tensor([heads])

        # the pieces together are the whole, where every token asks and the first is heard
        x = tokens(rand(n, t - 1, width).double(), rand(t, width).double())
        maps = [rand(width, width).double() for _ in range(3)], [rand(width).double()] * 3
        q, k, v = (F.linear(x, w, b) for w, b in zip(*maps))
        pieces = run(q[0], k.transpose(0, 1), v.transpose(0, 1))["out"]
        assert torch.allclose(pieces, attend(x, x, x, heads, *maps), rtol=1e-12, atol=1e-12)
    return file


def main():
    manifest = HERE / "MANIFEST"
    lines = manifest.read_text().splitlines() if manifest.exists() else []
    lines = [line for line in lines if line.split()[2] != GENERATOR]
    for make in [
        linear, layernorm, gelu, attention, l2norm, pool, contrastive, cyclic, embedding, patch_embedding,
        grad_norm, adamw, conv2d, batchnorm, avg_pool2d, attention_pool,
    ]:
        torch.manual_seed(20240611)
        path = HERE / f"ops_{make.__name__}.safetensors"
        save_file(make(), path)
        data = path.read_bytes()
        lines.append(f"{hashlib.sha256(data).hexdigest()}  {path.name}  {GENERATOR}")
        print(f"{len(data):8} {path.name}")
    manifest.write_text("".join(line + "\n" for line in sorted(lines, key=lambda line: line.split()[1])))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
