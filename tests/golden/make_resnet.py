"""Golden values of CLIP's ResNet: features, every gradient, running statistics, whole training.

    python tests/golden/make_resnet.py tests/golden

Made with open_clip_torch 3.3.0, torch 2.15 (CPU), numpy, safetensors. Deterministic. Weights and
inputs are make_encode.py's `noise`, as there: a tensor's stream is its number among the parameters,
with the running statistics behind them.

encode_resnet: in float64, for `train` and `eval`, the features and, of every parameter's gradient, the
inner products with ones, with itself and with noise; for `train` also the gradients themselves, and the
running statistics after three batches. `naive_f32` = [features, gradients] as in make_encode.py,
with batch norm in float32, too.
step_resnet: make_step.py's runs with this tower. resnet_init: how open_clip draws initial values.
"""

import hashlib
import json
import sys
from pathlib import Path

import make_encode
import make_step
import numpy as np
import torch
import torch.nn.functional as F
from make_encode import CONFIG, COTANGENT_IMAGE, IMAGES, PIXELS, error, noise
from make_step import PROBE, tensors
from open_clip.model import CLIP
from safetensors.numpy import save_file

CONFIG["vision_cfg"] = {
    "image_size": 64,
    "layers": [2, 1, 1, 1],
    "width": 2,
    "head_width": 16,
    "patch_size": None,
}
BATCHES = 3


def model(quick_gelu, dtype):
    clip = CLIP(**CONFIG, quick_gelu=quick_gelu).to(dtype)
    with torch.no_grad():
        for stream, (name, tensor) in enumerate(tensors(clip)):
            norm = "ln_" in name or "bn" in name or "downsample.1" in name
            base = 1.0 if norm and name.endswith(("weight", "running_var")) else 0.0
            values = base + 0.5 * noise(stream, tensor.numel())
            tensor.copy_(torch.from_numpy(values).reshape(tensor.shape))
    return clip


def pixels(batch, dtype):
    side = CONFIG["vision_cfg"]["image_size"]
    values = noise(PIXELS + 10 * batch, IMAGES * 3 * side * side)
    return torch.from_numpy(values).reshape(IMAGES, 3, side, side).to(dtype)


def run(training, dtype):
    clip = model(False, dtype).train(training)
    features = clip.encode_image(pixels(0, dtype))
    cotangent = torch.from_numpy(noise(COTANGENT_IMAGE, features.numel())).reshape(features.shape)
    (features * cotangent.to(dtype)).sum().backward()
    out = {"features": features.detach().double().numpy()}
    for name, param in clip.visual.named_parameters(prefix="visual"):
        out[f"grad.{name}"] = param.grad.double().numpy()
    if training:
        for batch in range(1, BATCHES):
            clip.encode_image(pixels(batch, dtype))
        for name, buffer in clip.named_buffers():
            if "running" in name:
                out[f"after.{name}"] = buffer.double().numpy()
    return out


def plain_batch_norm(x, mean, var, weight, bias, training, momentum, eps):
    """F.batch_norm in the precision of x throughout: torch adds up float32 in float64."""
    shape = (1, -1, 1, 1)
    if training:
        rows = x.transpose(0, 1).flatten(1)
        batch_mean = rows.mean(1)
        batch_var = (rows - batch_mean[:, None]).square().mean(1)
        with torch.no_grad():
            n = rows.shape[1]
            mean.lerp_(batch_mean, momentum)
            var.lerp_(batch_var * (n / (n - 1)), momentum)
        mean, var = batch_mean, batch_var
    scale = weight / (var + eps).sqrt()
    return (x - mean.view(shape)) * scale.view(shape) + bias.view(shape)


def in_single_precision(training):
    torchs, F.batch_norm = F.batch_norm, plain_batch_norm
    try:
        return run(training, torch.float32)
    finally:
        F.batch_norm = torchs


def encode(folder):
    file = {}
    for mode, training in [("train", True), ("eval", False)]:
        exact, naive = run(training, torch.float64), in_single_precision(training)
        # every key of a softmax moves by the bias of keys: its gradient is zero but for rounding
        idle = "grad.visual.attnpool.k_proj.bias"
        assert np.abs(exact.pop(idle)).max() < 1e-12
        errors = {name: error(naive[name], exact[name]) for name in exact}
        features = errors.pop("features")
        for stream, (name, x) in enumerate(exact.items()):
            if mode == "train" or name == "features":
                file[f"{mode}/{name}"] = x
            else:
                x = x.ravel()
                probe = noise(PROBE + stream, x.size)
                file[f"{mode}/{name}"] = np.array([x.sum(), x @ x, x @ probe, np.abs(x).max()])
        file[f"{mode}/naive_f32"] = np.array([features, max(errors.values())])
    save_file(file, folder / "encode_resnet.safetensors")


def steps(folder):
    make_encode.model = make_step.model = model
    result = {}
    for objective in ["clip", "roclip"]:
        exact = make_step.train(objective, 0.0)
        drift = make_step.drift(exact, make_step.train(objective, 2.0**-40))
        half = make_step.half(objective, exact[0])
        result[objective] = {"steps": exact[0], "finals": exact[1], "drift": drift, "half": half}
    (folder / "step_resnet.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    (out / "resnet_config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    encode(out)
    steps(out)
    make_encode.initial_values(out / "resnet_init.json")
    lines = [line for line in (out / "MANIFEST").read_text().splitlines() if "make_resnet.py" not in line]
    for name in ["encode_resnet.safetensors", "resnet_config.json", "resnet_init.json", "step_resnet.json"]:
        lines.append(f"{hashlib.sha256((out / name).read_bytes()).hexdigest()}  {name}  {Path(__file__).name}")
    (out / "MANIFEST").write_text("".join(line + "\n" for line in sorted(lines, key=lambda line: line.split()[1])))
