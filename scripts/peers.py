#!/usr/bin/env python3
"""PyTorch and others at the shapes of `benches/ops.rs` and `benches/step.rs`, on the same GPU.

    peers.py PART [--json FILE] [--device cuda|cpu] [--tiny] [--no-compile] [--budget SECONDS]

`ops` times every operation that has a counterpart, eager and through torch.compile, attention with
each backend of scaled_dot_product_attention. `pool` times matching, `loss` the contrastive loss:
PyTorch's forms, and every library that does the same and can be imported (`peer_wheels.txt`), each
with its memory and with how well its result agrees with PyTorch's in float32. `step` times a
training step of CLIP in bf16 autocast with fused AdamW: open_clip's model and loss where it can be
imported, else `plain_clip.py`. Captions have the lengths of `benches/step.rs` and are padded to 77,
as open_clip does.

Times are medians of samples of many calls between two CUDA events. What a peer refuses is kept with
its reason, and so is that it cannot be imported. Needs PyTorch 2.6 or newer.
"""

import argparse
import importlib
import json


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=["ops", "pool", "loss", "step"])
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes to try the script with")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--budget", type=float, default=360.0,
                        help="seconds after which nothing more is compiled")
    arguments = parser.parse_args()
    try:
        import torch
    except ImportError:
        raise SystemExit("peers.py: no PyTorch for this python; pip install torch")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("peers.py: PyTorch sees no GPU; --device cpu --tiny tries the script out")
    # a compiled backward may run again and again
    import torch._functorch.config as functorch

    functorch.donated_buffer = False
    # the folder beside this file, which comes before the file of the same name
    from peers.table import Table

    table = Table(arguments)
    importlib.import_module(f"peers.{arguments.part}").run(table, arguments)
    if arguments.json:
        on = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
        with open(arguments.json, "w") as file:
            found = {"device": on, "torch": torch.__version__, "rows": table.rows}
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
