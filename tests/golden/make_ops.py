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


def main():
    manifest = HERE / "MANIFEST"
    lines = manifest.read_text().splitlines() if manifest.exists() else []
    lines = [line for line in lines if line.split()[2] != GENERATOR]
    for make in [linear, layernorm, gelu, attention, l2norm, pool, contrastive, embedding, patch_embedding, grad_norm, adamw]:
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
