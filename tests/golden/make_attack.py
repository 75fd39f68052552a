"""Golden values of backdoor triggers: pictures stamped by NumPy, PyTorch and Pillow.

Command:  python tests/golden/make_attack.py            (from the root of the repository)
Versions: Python 3.11, torch 2.15.0 (CPU, float64, one thread), numpy 2.4.6, pillow 13.0.0
Writes:   attack.safetensors

Random numbers are Philox4x32-10 keyed as src/rng.rs says, written here from the paper (Salmon et
al. 2011) and held against Random123's known answer, so that the bytes of a pattern are checked and
not only its statistics.
"""

import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.numpy import save_file

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
HERE = pathlib.Path(__file__).parent
WIDTH, HEIGHT = 24, 20
SEED = 0x1234_5678_9ABC
TRIGGER, STAMP = 8, 9
MASK = 0xFFFFFFFF


def philox(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        left, right = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [right >> 32 ^ c[1] ^ k[0], right & MASK, left >> 32 ^ c[3] ^ k[1], left & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c


assert philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def words(domain, seed=SEED):
    block = 0
    while True:
        yield from philox([block, domain << 24, 0, 0], [seed & MASK, seed >> 32])
        block += 1


def uniform(stream):
    low = next(stream)
    return ((next(stream) << 32 | low) >> 11) * 2.0**-53


def normal(stream):
    radius = math.sqrt(-2 * math.log(1 - uniform(stream)))
    return radius * math.cos(2 * math.pi * uniform(stream))


def below(stream, n):
    low = next(stream)
    return (next(stream) << 32 | low) * n >> 64  # n is far too small for a rejection


def noise(stream, shape):
    count = math.prod(shape)
    raw = b"".join(next(stream).to_bytes(4, "little") for _ in range(-(-count // 4)))
    return np.frombuffer(raw[:count], np.uint8).reshape(shape)


def nearest(values):
    return np.clip(np.floor(np.asarray(values) + 0.5), 0, 255).astype(np.uint8)


def picture():
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    planes = [x * 10 + y, 255 - y * 11, (x * x * 7 + y * 13 * x) % 256]
    return np.stack(planes, -1).astype(np.uint8)


def patched(patch, top, left):
    out = picture()
    out[top : top + len(patch), left : left + len(patch)] = patch
    return out


def blended(pattern, alpha):
    return nearest((1 - alpha) * picture().astype(np.float64) + alpha * pattern)


def sig(alpha):
    wave = 60 * np.sin(2 * np.pi * np.arange(WIDTH) * 6 / WIDTH)[None, :, None]
    if alpha is None:
        return nearest(picture() + wave)
    return nearest((1 - alpha) * picture() + alpha * wave)


def wanet(grid, strength):
    stream = words(TRIGGER)
    field = torch.tensor([-1 + 2 * uniform(stream) for _ in range(2 * grid * grid)])
    field = field.reshape(1, 2, grid, grid) / field.abs().mean()
    field = F.interpolate(field, (HEIGHT, WIDTH), mode="bicubic", align_corners=True)
    y, x = torch.linspace(-1, 1, HEIGHT), torch.linspace(-1, 1, WIDTH)
    identity = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]
    where = (identity + strength * field.permute(0, 2, 3, 1) / HEIGHT).clamp(-1, 1)
    planes = torch.from_numpy(picture().astype(np.float64)).permute(2, 0, 1)[None]
    out = F.grid_sample(planes, where, align_corners=True)
    return nearest(out[0].permute(1, 2, 0).numpy())


def random_place(size):
    stream = words(STAMP)
    patch = noise(words(TRIGGER), (size, size, 3))
    left, top = below(stream, WIDTH - size + 1), below(stream, HEIGHT - size + 1)
    return patched(patch, top, left)


def fresh(size):
    stream = words(STAMP)
    means = picture().reshape(-1, 3).mean(0)
    values = [means[i % 3] + 255 * normal(stream) for i in range(3 * size * size)]
    return patched(nearest(values).reshape(size, size, 3), HEIGHT - size, WIDTH - size)


def stripes():
    stream = words(TRIGGER)
    row = np.array([255 * below(stream, 2) for _ in range(3 * WIDTH)])
    return np.broadcast_to(row.reshape(1, WIDTH, 3), (HEIGHT, WIDTH, 3))


whole = (HEIGHT, WIDTH, 3)
tensors = {
    "picture": picture(),
    "badnets": patched(noise(words(TRIGGER), (5, 5, 3)), HEIGHT - 5, WIDTH - 5),
    "badnets_random": random_place(5),
    "badnets_fresh": fresh(5),
    "blended": blended(noise(words(TRIGGER), whole), 0.2),
    "blended_fresh": blended(noise(words(STAMP), whole), 0.2),
    "blended_stripes": blended(stripes(), 0.3),
    "sig": sig(0.2),
    "sig_additive": sig(None),
    "wanet": wanet(4, 5.0),
    "wanet_many_points": wanet(31, 20.0),
    "square": np.asarray(Image.fromarray(picture()).resize((16, 16), Image.Resampling.BICUBIC)),
}
save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, HERE / "attack.safetensors")
