"""Matching: for every query the row of a pool with the largest inner product.

PyTorch makes all inner products and takes maxima, in bf16 as they come (whose ties and roundings
change winners) or in float32; in chunks of the pool where they do not fit or to stay in a cache;
compiled. FAISS and cuVS do the same with their own selection, flash-kmeans fuses both in Triton.
`product` is the product alone, with nobody looking at it.
"""

import torch

# What `benches/ops.rs` has; names must be the same there.
GPU = [(512, 20_000, 1024), (4096, 100_000, 1024), (32_768, 1_000_000, 512)]
TINY = [(67, 515, 33)]
TOP = {(4096, 100_000, 1024), (67, 515, 33)}  # where the 8 nearest are asked for, too
# Inner products of a chunk: what a cache holds, and more.
CHUNKS = [1 << 27, 1 << 29, 1 << 31]
SAMPLE, BLOCK = 256, 65_536


def unit(rows, width, device, dtype=torch.bfloat16):
    """Random unit rows; normal before that, as trained embeddings nearly are."""
    made = torch.empty(rows, width, device=device, dtype=dtype)
    for part in made.split(BLOCK):
        part.copy_(torch.nn.functional.normalize(torch.randn(part.shape, device=device), dim=-1))
    return made


def eager(queries, pool):
    return (queries @ pool.t()).max(1)


def eager_f32(queries, pool):
    if queries.is_cuda:
        return torch.mm(queries, pool.t(), out_dtype=torch.float32).max(1)
    return (queries.float() @ pool.float().t()).max(1)


def chunked(rows, step=eager):
    """By `rows` rows of the pool at a time, with the best so far."""

    def call(queries, pool):
        best = index = None
        for at in range(0, len(pool), rows):
            score, here = step(queries, pool[at:at + rows])
            if best is None:
                best, index = score, here
            else:
                index = torch.where(score > best, here + at, index)
                best = torch.maximum(best, score)
        return best, index

    return call


def product(rows):
    """The inner products alone, `rows` rows of the pool at a time, in memory that is used again."""

    def make(queries, pool):
        out = torch.empty(len(queries), rows, device=pool.device, dtype=pool.dtype)

        def call():
            for at in range(0, len(pool), rows):
                part = pool[at:at + rows]
                torch.mm(queries, part.t(), out=out[:, :len(part)])

        return call

    return make


def faiss(queries, pool):
    import faiss
    import faiss.contrib.torch_utils

    resources = faiss.StandardGpuResources()
    metric = faiss.METRIC_INNER_PRODUCT
    return lambda: [out[:, 0] for out in faiss.knn_gpu(resources, queries, pool, 1, metric=metric)]


def cuvs(queries, pool):
    from cuvs.common import Resources
    from cuvs.neighbors import brute_force

    queries, pool = queries.half(), pool.half()  # it knows no bf16
    resources = Resources(stream=torch.cuda.current_stream().cuda_stream)
    index = brute_force.build(pool, "inner_product", resources=resources)
    found = torch.empty(len(queries), 1, device=pool.device, dtype=torch.int64)
    score = torch.empty(len(queries), 1, device=pool.device)

    def call():
        brute_force.search(index, queries, 1, neighbors=found, distances=score,
                           resources=resources)
        return score[:, 0], found[:, 0]

    return call


def flash_kmeans(queries, pool):
    from flash_kmeans.assign_euclid_triton import cosine_assign_triton

    return lambda: (None, cosine_assign_triton(queries[None], pool[None])[0])


LIBRARIES = [("FAISS", faiss), ("cuVS", cuvs), ("flash-kmeans", flash_kmeans)]


def reference(queries, pool):
    """A judge of indices, which knows the largest inner products of some queries in float32."""
    some = queries[:SAMPLE].float()
    best, index = chunked(BLOCK, lambda x, p: (x @ p.float().t()).max(1))(some, pool)

    def judge(result):
        found = result[1][:SAMPLE].long()
        score = (some * pool[found].float()).sum(1)
        same = (found == index).float().mean().item()
        worst = (best - score).max().item()
        return {"same": same, "worst": worst, "judged": f"same {same:.3f}, short {worst:.1e}"}

    return judge


def compiled(function, mode):
    torch._dynamo.reset()
    return torch.compile(function, mode=mode, dynamic=False)


def forms(table, rows):
    """PyTorch's: what they are called, and what makes them."""
    yield "eager bf16", lambda: eager
    yield "eager f32", lambda: eager_f32
    for n in rows:
        yield f"chunks of {n}", lambda: chunked(n)
    if not table.compiles():
        return
    yield "compile", lambda: compiled(eager, "max-autotune-no-cudagraphs")
    yield "compile, graph", lambda: compiled(eager, "max-autotune")
    for n in rows[-1:]:
        # a graph would write the next chunk's result over this one's
        one = lambda: compiled(eager, "max-autotune-no-cudagraphs")
        yield f"compile, chunks of {n}", lambda: chunked(n, one())


def run(table, arguments):
    device = arguments.device
    torch.manual_seed(1)
    for shape in TINY if arguments.tiny else GPU:
        count, size, width = shape
        name = f"{count}x{size}x{width}"
        queries, pool = unit(count, width, device), unit(size, width, device)
        for operand in queries, pool:
            torch._dynamo.mark_static_address(operand)  # a graph need not copy it
        judge = reference(queries, pool)
        most = min(size, CHUNKS[-1] // count)
        table.add(f"product {name}", "torch", lambda: product(most)(queries, pool))
        rows = [chunk // count for chunk in CHUNKS if chunk // count < size]
        for peer, form in forms(table, [size // 3] if arguments.tiny else rows):

            def make():
                call = form()
                return lambda: call(queries, pool)

            table.add(f"pool matching {name}", peer, make, judge)
        for peer, library in LIBRARIES:
            make = lambda: library(queries, pool)
            table.add(f"pool matching {name}", peer, make, judge, slow=True)
        if shape in TOP:
            eight = lambda: lambda: (queries @ pool.t()).topk(8, 1)
            table.add(f"pool top 8 {name}", "eager bf16", eight)
