#!/usr/bin/env python3
"""Reads the machine code of the kernels in a program and checks what needs no GPU.

    scripts/check_kernels.py target/release/roclip-train

For every architecture: no kernel has a stack or local memory (which is where registers spill to),
tensor-core kernels contain tensor-core products and matrix loads, those of Hopper its own; streaming
kernels move 16 bytes at a time. Prints one line a kernel; exits with 1 and the reasons where something is
missing. Needs cuobjdump and nvdisasm (scripts/install-cuda.sh).
"""

import re
import subprocess
import sys

ARCHITECTURES = ["sm_80", "sm_90a", "sm_100"]

# Kernel (a part of its name) -> instructions that at least one of its variants must contain. UTC*MMA and
# others would be Blackwell's own; the portable kernels use the same HMMA there.
TENSOR = ["HMMA", "LDSM"]
STREAM = [r"LDG\.E\.128", r"STG\.E\.128"]
NEEDED = {
    "attention_forward_kernel": TENSOR,
    "attention_backward_kernel": TENSOR,
    "pool_match_kernel": TENSOR + ["LDGSTS"],
    "contrastive_forward_kernel": TENSOR + ["LDGSTS"],
    "contrastive_weights_kernel": TENSOR + ["LDGSTS"],
    "conv2d_product_kernel": TENSOR + ["LDGSTS", r"STG\.E\.128"],
    "conv2d_weight_kernel": TENSOR + ["LDGSTS", r"STG\.E\.128"],
    "conv2d_pictures_kernel": ["HMMA", "LDGSTS", r"STG\.E\.128"],
    "conv2d_pictures_weight_kernel": TENSOR + ["LDGSTS"],
    "layernorm_forward_kernel": STREAM,
    "layernorm_backward_kernel": STREAM,
    "batchnorm_statistics_kernel": [r"LDG\.E\.128"],
    "batchnorm_forward_kernel": STREAM,
    "batchnorm_sums_kernel": STREAM,
    "batchnorm_dx_kernel": STREAM,
    "avg_pool2d_forward_kernel": STREAM,
    "avg_pool2d_backward_kernel": STREAM,
    "attention_pool_forward_kernel": [r"LDG\.E\.128"],
    "attention_pool_backward_kernel": STREAM,
    "gelu_forward_kernel": STREAM,
    "gelu_backward_kernel": STREAM,
    "l2norm_forward_kernel": STREAM,
    "l2norm_backward_kernel": STREAM,
    "adamw_kernel": STREAM,
}

# The same on sm_90a alone, in every variant: warpgroup products, loads that both blocks of a cluster get,
# and registers that change hands.
CLUSTER = [r"UTMALDG\.2D ", r"UTMALDG\.2D\.MULTICAST", r"USETMAXREG\.DEALLOC", r"USETMAXREG\.TRY_ALLOC", "UCGABAR"]
NEEDED_ON_HOPPER = {
    "pool_match_hopper_kernel": ["HGMMA"] + CLUSTER,
    "pool_filter_kernel": ["IGMMA"] + CLUSTER,
    "pool_rescore_kernel": ["HGMMA", "LDGSTS"],
    "contrastive_forward_hopper_kernel": ["HGMMA", r"MUFU\.EX2"] + CLUSTER,
    "contrastive_weights_hopper_kernel": ["HGMMA", r"MUFU\.EX2", r"STG\.E\.128"] + CLUSTER,
}


def cuobjdump(*arguments):
    done = subprocess.run(["cuobjdump", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"cuobjdump {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def resources(program, architecture):
    """Kernel -> (registers, bytes of stack, bytes of local memory, bytes of shared memory)."""
    text = cuobjdump("-arch", architecture, "-res-usage", program)
    found = {}
    for name, usage in re.findall(r"Function (\S+):\n\s*(REG:.*)", text):
        number = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", usage)}
        found[name] = tuple(number[key] for key in ("REG", "STACK", "LOCAL", "SHARED"))
    return found


def instructions(program, architecture):
    """Kernel -> its instructions as text."""
    text = cuobjdump("-arch", architecture, "-sass", program)
    parts = re.split(r"^\s*Function : (\S+)\n", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2]))


def short(mangled):
    """`cuda_build::(anonymous namespace)::gelu_kernel<true>` without its arguments."""
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True).stdout.strip()
    name = re.sub(r"^void ", "", name).replace("cuda_build::", "").replace("(anonymous namespace)::", "")
    return re.sub(r"\([A-Za-z_:]*\)$", "", name)


def main(program):
    wrong = []
    for architecture in ARCHITECTURES:
        usage, code = resources(program, architecture), instructions(program, architecture)
        if not usage:
            wrong.append(f"{architecture}: no kernel in {program}")
        for name, (registers, stack, local, shared) in sorted(usage.items()):
            body = code.get(name, "")
            counts = {op: len(re.findall(op, body)) for op in ("HGMMA", "IGMMA", "HMMA", "LDSM", "LDGSTS", "LDG", "STG")}
            told = " ".join(f"{op}:{n}" for op, n in counts.items() if n)
            print(f"{architecture:7} {short(name):70} REG:{registers} SHARED:{shared} {told}")
            if stack or local:
                wrong.append(f"{architecture} {short(name)}: {stack} bytes of stack, {local} local")
        for kernel, needed in NEEDED.items():
            bodies = [body for name, body in code.items() if kernel in name]
            for op in needed:
                if not any(re.search(op, body) for body in bodies):
                    wrong.append(f"{architecture} {kernel}: no {op} in its {len(bodies)} variants")
        for kernel, needed in NEEDED_ON_HOPPER.items() if architecture == "sm_90a" else ():
            bodies = {name: body for name, body in code.items() if kernel in name}
            if not bodies:
                wrong.append(f"{architecture}: no {kernel}")
            for name, body in bodies.items():
                missing = [op for op in needed if not re.search(op, body)]
                if missing:
                    wrong.append(f"{architecture} {short(name)}: no {', '.join(missing)}")
    for line in wrong:
        print(f"FAIL {line}", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
