"""Times calls on a device, and keeps what was found."""

import statistics
import time

import torch

# Seconds that one wait lasts, and that one row takes.
SAMPLE = 0.02
EACH = 0.33


class Clock:
    """Milliseconds of a call on the device."""

    def __init__(self, device):
        self.on_gpu = device == "cuda"

    def once(self, calls, body):
        if self.on_gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
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
            if estimate > 1e3:
                break
        least = 1 if estimate > 1e3 else 3
        calls = max(1, min(100, int(SAMPLE * 1e3 / max(estimate, 1e-6))))
        times, begin = [], time.perf_counter()
        while len(times) < least or time.perf_counter() - begin < EACH and len(times) < 99:
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


def said(row):
    """What a row has beside its time."""
    extra = f"{row['extra_bytes'] / 1e9:.3f} GB " if "extra_bytes" in row else ""
    return extra + row.get("judged", "")


class Table:
    """Rows of results; a peer that fails is a row with a reason."""

    def __init__(self, arguments):
        self.arguments, self.rows = arguments, []
        self.clock = Clock(arguments.device)
        self.end = time.monotonic() + arguments.budget

    def compiles(self):
        return not self.arguments.no_compile

    def add(self, name, peer, make, judge=None, slow=False):
        """`make` returns the body to time, `judge` what is to be said of its result; what compiles
        or tunes itself is `slow`."""
        row, slow = {"name": name, "peer": peer}, slow or "compile" in peer
        try:
            if slow and time.monotonic() > self.end:
                raise TimeoutError(f"the budget of {self.arguments.budget} s was spent")
            body = make()
            row.update(figures(self.clock.times(body)))
            if judge:
                row.update(self.memory(body, judge))
            print(f"{name:44} {peer:20} {row['median_ms']:9.3f} ms  {said(row)}", flush=True)
        except Exception as error:  # a peer may lack anything; that is a result, too
            row["error"] = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            print(f"{name:44} {peer:20} {row['error']}", flush=True)
        self.rows.append(row)
        body = None  # it may hold much
        if slow:
            torch._dynamo.reset()
        if self.arguments.device == "cuda":
            torch.cuda.empty_cache()

    def memory(self, body, judge):
        """What PyTorch's allocator gave one call beyond what there was, and the judgement."""
        if self.arguments.device != "cuda":
            return judge(body())
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = body()
        torch.cuda.synchronize()
        extra = torch.cuda.max_memory_allocated() - before
        return {"extra_bytes": extra, **judge(result)}

    def variants(self, function):
        """Eager, and compiled."""
        yield "eager", function
        if self.compiles():
            torch._dynamo.reset()
            yield "compile", torch.compile(function, dynamic=False)

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
            return lambda: torch.autograd.grad(out, about, grad, retain_graph=True)

        def forward():
            for tensor in about:
                tensor.requires_grad_(False)
            return lambda: call(*inputs)

        self.add(names[0], peer, forward)
        self.add(names[1], peer, backward)
