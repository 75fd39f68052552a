"""Golden values of the encoders: features, every gradient, and how open_clip draws initial values.

    python tests/golden/make_encode.py tests/golden

Made with open_clip_torch 3.3.0, torch 2.15 (CPU), numpy, safetensors. Deterministic.

Weights and inputs are not stored: both sides compute them from a hash (`noise`), on a grid that
float32 holds exactly. Stored are, in float64, the features and the gradient of every parameter of a
tower for a random cotangent, and `naive_f32` = [features, gradients]: the largest error over all
tensors of open_clip's own float32 run, max|difference| / max|reference|, tensor by tensor.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from open_clip.model import CLIP
from safetensors.numpy import save_file

CONFIG = {
    "embed_dim": 7,
    "vision_cfg": {
        "image_size": 15,
        "layers": 3,
        "width": 12,
        "head_width": 4,
        "mlp_ratio": 3.5,
        "patch_size": 5,
    },
    "text_cfg": {
        "context_length": 13,
        "vocab_size": 61,
        "width": 10,
        "heads": 2,
        "layers": 2,
    },
}
# Lengths with start and end tokens: the longest, the shortest, and between.
LENGTHS = [5, 13, 2, 9]
IMAGES = 3
START, END = 59, 60
# Streams of `noise`; a parameter's is its number in the state dict.
PIXELS, COTANGENT_IMAGE, TOKENS, COTANGENT_TEXT = 1000, 1001, 1002, 1003
SEEDS = 300


def splitmix64(x):
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def noise(stream, n):
    """n values in [-1, 1), multiples of 2^-15."""
    counter = (np.uint64(stream) << np.uint64(32)) | np.arange(n, dtype=np.uint64)
    with np.errstate(over="ignore"):
        return (splitmix64(counter) >> np.uint64(48)).astype(np.float64) / 32768 - 1


def model(quick_gelu, dtype):
    clip = CLIP(**CONFIG, quick_gelu=quick_gelu).to(dtype)
    state = clip.state_dict()
    for stream, (name, tensor) in enumerate(state.items()):
        base = 1.0 if ".ln_" in f".{name}" and name.endswith("weight") else 0.0
        values = base + 0.5 * noise(stream, tensor.numel())
        tensor.copy_(torch.from_numpy(values).reshape(tensor.shape))
    clip.load_state_dict(state)
    return clip


def captions():
    ids = np.zeros((len(LENGTHS), CONFIG["text_cfg"]["context_length"]), dtype=np.int64)
    draws = ((noise(TOKENS, ids.size) + 1) * 32768).astype(np.int64) % START
    for n, length in enumerate(LENGTHS):
        ids[n, :length] = draws[n * ids.shape[1] :][:length]
        ids[n, 0], ids[n, length - 1] = START, END
    return torch.from_numpy(ids)


def run(tower, quick_gelu, dtype):
    clip = model(quick_gelu, dtype)
    if tower == "image":
        side = CONFIG["vision_cfg"]["image_size"]
        pixels = torch.from_numpy(noise(PIXELS, IMAGES * 3 * side * side))
        features = clip.encode_image(pixels.reshape(IMAGES, 3, side, side).to(dtype))
        stream = COTANGENT_IMAGE
    else:
        features = clip.encode_text(captions())
        stream = COTANGENT_TEXT
    cotangent = torch.from_numpy(noise(stream, features.numel())).reshape(features.shape)
    (features * cotangent.to(dtype)).sum().backward()
    out = {"features": features.detach().double().numpy()}
    for name, param in clip.named_parameters():
        if param.grad is not None:
            out[f"grad.{name}"] = param.grad.double().numpy()
    return out


def error(got, reference):
    return np.abs(got - reference).max() / np.abs(reference).max()


def towers(folder):
    for tower in ["image", "text"]:
        for gelu in ["erf", "quick"]:
            quick = gelu == "quick"
            exact, naive = run(tower, quick, torch.float64), run(tower, quick, torch.float32)
            errors = {name: error(naive[name], exact[name]) for name in exact}
            features = errors.pop("features")
            exact["naive_f32"] = np.array([features, max(errors.values())])
            save_file(exact, folder / f"encode_{tower}_{gelu}.safetensors")


def initial_values(path):
    """For every tensor of floats [mean, deviation] of x, |x|, x^2 and x^4 over many models."""
    samples = {}
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        for name, tensor in CLIP(**CONFIG).state_dict().items():
            if tensor.is_floating_point():
                samples.setdefault(name, []).append(tensor.double().numpy().ravel())
    stats = {}
    for name, parts in samples.items():
        x = np.concatenate(parts)
        powers = [x, np.abs(x), x**2, x**4]
        stats[name] = {
            "n": x.size,
            "stats": [[float(f"{v:.9g}") for v in (p.mean(), p.std())] for p in powers],
        }
    text = json.dumps(stats, indent=1)
    path.write_text(text + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    (out / "encode_config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    towers(out)
    initial_values(out / "encode_init.json")
