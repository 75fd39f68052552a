"""Golden values for src/data/decode.rs and src/data/transform.

Run:      python tests/golden/make_transform.py   (writes next to itself)
Versions: Python 3.11, torch 2.15.0, torchvision 0.29.2, Pillow 13.0.0 (libjpeg-turbo, libwebp
          1.6.0), numpy, safetensors; x86-64.

decode.safetensors      encoded files and what Pillow makes of them
transform.safetensors   every operation alone, whole chains, and random boxes, by torchvision
transform_resize.json   SHA-256 sums of resized parts and centres of noise, of many shapes
"""

import hashlib
import io
import json
import pathlib
import struct
import zlib

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file
from torchvision import transforms as T
from torchvision.transforms import functional as F
from torchvision.transforms import InterpolationMode as Mode

HERE = pathlib.Path(__file__).parent


def picture(width, height, seed=0):
    """Gradients, shapes with hard and soft edges, and noise: what photographs are made of."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    u, v = x / max(width - 1, 1), y / max(height - 1, 1)
    rgb = np.stack([200 * u + 30, 180 * v + 20 * u, 150 * (1 - u) * v + 60], -1)
    disc = (x - 0.35 * width) ** 2 + (y - 0.4 * height) ** 2 < (0.22 * min(width, height)) ** 2
    rgb[disc] = [230, 90, 30]
    glow = np.exp(-((u - 0.75) ** 2 + (v - 0.7) ** 2) / 0.02)[..., None]
    rgb = rgb * (1 - glow) + np.array([20, 240, 250]) * glow
    rgb[height // 8 : height // 8 + 2] = [5, 8, 250]
    rgb += rng.normal(0, 6, rgb.shape)
    return Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))


def saved(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(width, height, depth, colour, rows, extra=b""):
    """A PNG written by hand, for the kinds that Pillow does not write."""

    def chunk(name, body):
        crc = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + crc

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + r for r in rows), 9)
    chunks = chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def adobe_rgb(image, named=True):
    """A JPEG whose three components are RGB: Adobe segment, transform 0.

    `named` says whether the components are also called R, G, B, or 1, 2, 3.
    """
    data = saved(image, "JPEG", quality=90, keep_rgb=True)
    if not named:
        for sof_or_sos, at, step in ((b"\xff\xc0", 10, 3), (b"\xff\xda", 5, 2)):
            start = data.index(sof_or_sos) + at
            patched = bytearray(data)
            patched[start : start + 3 * step : step] = bytes([1, 2, 3])
            data = bytes(patched)
    segment = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
    body = data[2:]
    if body[:2] == b"\xff\xe0":
        body = body[2 + struct.unpack(">H", body[2:4])[0] :]
    if b"Adobe" in body[:64]:
        return b"\xff\xd8" + body
    return b"\xff\xd8" + segment + body


def decode_files():
    width, height = 23, 17
    a = picture(width, height, 1)
    tiny = picture(1, 1, 2)
    grey = a.convert("L")
    rgba = a.convert("RGBA")
    rgba.putalpha(Image.fromarray(np.tile(np.arange(width, dtype=np.uint8) * 9, (height, 1))))
    la = rgba.convert("LA")
    palette = a.quantize(23)
    wide = np.asarray(a).astype(np.uint32) * 257 + 11
    wide = np.minimum(wide, 65535).astype(">u2")
    packed = lambda step, row, rows: [
        bytes((step * (i + y)) & 255 for i in range(row)) for y in range(rows)
    ]
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "jpeg_420": saved(a, "JPEG", quality=90),
        "jpeg_422": saved(a, "JPEG", quality=90, subsampling=1),
        "jpeg_444": saved(a, "JPEG", quality=90, subsampling=0),
        "jpeg_progressive": saved(a, "JPEG", quality=80, progressive=True),
        "jpeg_restart": saved(a, "JPEG", quality=80, restart_marker_blocks=2),
        "jpeg_grey": saved(grey, "JPEG", quality=90),
        "jpeg_grey_progressive": saved(grey, "JPEG", quality=90, progressive=True),
        "jpeg_cmyk": saved(a.convert("CMYK"), "JPEG", quality=90),
        "jpeg_ycck": saved(a.convert("CMYK"), "JPEG", quality=90).replace(
            b"Adobe\x00\x64\x00\x00\x00\x00\x00", b"Adobe\x00\x64\x00\x00\x00\x00\x02"),
        "jpeg_adobe_rgb": adobe_rgb(a),
        "jpeg_adobe_rgb_numbered": adobe_rgb(a, named=False),
        "jpeg_exif_rotated": saved(a, "JPEG", quality=90, exif=exif),
        "jpeg_1x1": saved(tiny, "JPEG", quality=90),
        "jpeg_trailing": saved(a, "JPEG", quality=70) + b"after the end",
        "png_rgb": saved(a, "PNG"),
        "png_rgba": saved(rgba, "PNG"),
        "png_grey": saved(grey, "PNG"),
        "png_grey_alpha": saved(la, "PNG"),
        "png_1bit": saved(grey.convert("1"), "PNG"),
        "png_palette": saved(palette, "PNG"),
        "png_palette_transparent": saved(palette, "PNG", transparency=3),
        "png_rgb16": png(width, height, 16, 2, [r.tobytes() for r in wide]),
        "png_grey2": png(width, height, 2, 0, packed(17, 6, height)),
        "png_grey4": png(width, height, 4, 0, packed(29, 12, height)),
        "png_grey_transparent": png(width, height, 8, 0, [r.tobytes() for r in np.asarray(grey)],
            struct.pack(">I", 2) + b"tRNS\0\x40" + struct.pack(">I", zlib.crc32(b"tRNS\0\x40"))),
        "webp_lossless": saved(a, "WEBP", lossless=True),
        "webp_lossless_alpha": saved(rgba, "WEBP", lossless=True, exact=True),
        "webp_lossy": saved(a, "WEBP", quality=80),
        "webp_lossy_alpha": saved(rgba, "WEBP", quality=80),
        "webp_animated": saved(
            a, "WEBP", lossless=True, save_all=True, append_images=[picture(width, height, 5)]
        ),
    }
    tensors = {}
    for name, data in files.items():
        rgb = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        tensors[name + ".file"] = np.frombuffer(data, np.uint8)
        tensors[name + ".rgb"] = np.ascontiguousarray(rgb)
    # Pillow clips 16-bit grey at 255; the sane answer is the high byte.
    tensors["png_grey16.file"] = np.frombuffer(
        png(width, height, 16, 0, [r.tobytes() for r in wide[..., 1]]), np.uint8)
    tensors["png_grey16.rgb"] = np.repeat((wide[..., 1:2] >> 8).astype(np.uint8), 3, -1)
    return tensors


# Parts of a 61x47 picture: (top, left, height, width).
PARTS = {
    "shrunk": (5, 7, 40, 50),
    "grown": (10, 12, 9, 12),
    "same": (3, 4, 16, 16),
    "whole": (0, 0, 47, 61),
    "flat": (20, 15, 10, 44),
    "pixel": (46, 60, 1, 1),
}
SIZE = 16
EVAL_SIZES = [
    (31, 23), (23, 31), (16, 16), (60, 4), (4, 60), (19, 16), (16, 21), (1, 1), (17, 20)
]
BLURS = {
    "blur_narrow": (21, 0.1),
    "blur_middle": (21, 0.83),
    "blur_wide": (21, 2.0),
    "blur_small": (3, 0.7),
}


def array(image):
    return np.ascontiguousarray(np.asarray(image))


def colour_ops(a):
    ops = {
        "brightness_down": F.adjust_brightness(a, 0.55),
        "brightness_up": F.adjust_brightness(a, 1.45),
        "contrast_down": F.adjust_contrast(a, 0.55),
        "contrast_up": F.adjust_contrast(a, 1.45),
        "saturation_down": F.adjust_saturation(a, 0.55),
        "saturation_up": F.adjust_saturation(a, 1.45),
        "hue_down": F.adjust_hue(a, -0.083),
        "hue_up": F.adjust_hue(a, 0.1),
        "hue_zero": F.adjust_hue(a, 0.0),
        "gray": F.to_grayscale(a, 3),
        "flip": F.hflip(a),
    }
    for name, (kernel, sigma) in BLURS.items():
        ops[name] = F.gaussian_blur(a, [kernel, kernel], [sigma, sigma])
    return ops


def chain(image, part, flip, gray, sigma, mode):
    """RoCLIP's operations, jitter in the order contrast, hue, brightness, saturation."""
    if flip:
        image = F.hflip(image)
    image = F.resized_crop(image, *part, [SIZE, SIZE], mode)
    image = F.adjust_contrast(image, 1.3)
    image = F.adjust_hue(image, -0.06)
    image = F.adjust_brightness(image, 0.7)
    image = F.adjust_saturation(image, 1.4)
    if gray:
        image = F.to_grayscale(image, 3)
    return F.gaussian_blur(image, [21, 21], [sigma, sigma])


def op_values():
    out = {"small": array(picture(25, 21, 3)), "large": array(picture(61, 47, 4))}
    small, large = Image.fromarray(out["small"]), Image.fromarray(out["large"])
    out |= {"op." + name: array(image) for name, image in colour_ops(small).items()}
    for name, part in PARTS.items():
        for mode in (Mode.BILINEAR, Mode.BICUBIC):
            cut = F.resized_crop(large, *part, [SIZE, SIZE], mode)
            out[f"crop.{name}.{mode.value}"] = array(cut)
    for width, height in EVAL_SIZES:
        image = picture(width, height, 6)
        out[f"eval.{width}x{height}.file"] = array(image)
        image = F.resize(image, SIZE, Mode.BICUBIC)
        out[f"eval.{width}x{height}.rgb"] = array(F.center_crop(image, [SIZE, SIZE]))
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    same = Image.fromarray(out["eval.16x16.file"])
    out["normalised.16x16"] = F.normalize(F.to_tensor(same), mean, std).numpy()
    out["chain.same"] = array(chain(large, PARTS["same"], True, False, 1.1, Mode.BILINEAR))
    out["chain.gray"] = array(chain(large, PARTS["same"], False, True, 0.4, Mode.BILINEAR))
    out["chain.shrunk"] = array(chain(large, PARTS["shrunk"], True, False, 1.1, Mode.BILINEAR))
    return out


def box_values():
    """Moments of torchvision's random boxes, and the boxes of its fallback."""
    out = {}
    torch.manual_seed(1)
    for name, size, scale, ratio in (
        ("roclip", (224, 224), (0.08, 1.0), (3 / 4, 4 / 3)),
        ("clip", (500, 375), (0.9, 1.0), (3 / 4, 4 / 3)),
        ("tall", (40, 300), (0.1, 0.6), (0.5, 2.0)),
    ):
        image = Image.new("L", size)
        draw = lambda: T.RandomResizedCrop.get_params(image, scale, ratio)
        draws = np.array([draw() for _ in range(20000)])
        out[f"boxes.{name}"] = np.stack([draws.mean(0), draws.std(0)])
    sizes = [(2000, 8), (8, 2000), (1, 1), (50, 40), (3, 7), (1, 2000), (2000, 1), (99, 50)]
    rows = []
    for width, height in sizes:
        # An area of five times the picture never fits, so that every try fails.
        image = Image.new("L", (width, height))
        box = T.RandomResizedCrop.get_params(image, (5, 5), (3 / 4, 4 / 3))
        rows.append((width, height, *box))
    out["fallback"] = np.array(rows, np.int64)
    return out


def noise(width, height, seed):
    """The high bytes of Knuth's 32-bit linear congruential generator, black and white in between:
    what a cubic filter overshoots most."""
    state, out = np.uint32(seed), bytearray()
    for _ in range(3 * width * height):
        state = np.uint32((int(state) * 1664525 + 1013904223) % 2**32)
        value = int(state) >> 24
        out.append(0 if value < 64 else 255 if value > 191 else value)
    return Image.frombytes("RGB", (width, height), bytes(out))


def resize_cases():
    """[seed, width, height, part (top, left, height, width) or null, size, filter, flip, sum of planes].

    Without a part: shorter side to `size` by bicubic, then the centre, mirrored at last.
    """
    rng = np.random.default_rng(8)
    shapes = [(1, 1), (1, 9), (9, 1), (2, 2), (3, 70), (70, 3), (16, 16), (37, 31), (131, 90)]
    cases = []
    for seed, (width, height) in enumerate(shapes):
        image = noise(width, height, seed)
        for size in (1, 2, 16, 31, 32, 37, 65):
            parts = [None, (0, 0, height, width)]
            for _ in range(3):
                h, w = rng.integers(1, height + 1), rng.integers(1, width + 1)
                top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
                parts.append(tuple(int(x) for x in (top, left, h, w)))
            for part in parts:
                flip = bool(rng.integers(0, 2))
                name = "bicubic" if part is None else ("bilinear", "bicubic")[rng.integers(0, 2)]
                if part is None:
                    out = F.center_crop(F.resize(image, size, Mode.BICUBIC), [size, size])
                    out = F.hflip(out) if flip else out
                else:
                    out = F.hflip(image) if flip else image
                    out = F.resized_crop(out, *part, [size, size], Mode(name))
                digest = hashlib.sha256(array(out).transpose(2, 0, 1).tobytes()).hexdigest()
                cases.append([seed, width, height, part, size, name, flip, digest])
    return cases


def sums():
    """Sums over every colour, for the unit tests of src/data/transform/color.rs."""

    def over_all(convert):
        digest = hashlib.sha256()
        b, c = np.mgrid[0:256, 0:256].astype(np.uint8)
        for a in range(256):
            plane = np.ascontiguousarray(np.stack([np.full_like(b, a), b, c], -1))
            digest.update(array(convert(plane)).tobytes())
        return digest.hexdigest()

    yield "RGB to HSV", over_all(lambda x: Image.fromarray(x).convert("HSV"))
    yield "HSV to RGB", over_all(lambda x: Image.fromarray(x, "HSV").convert("RGB"))
    yield "luminance", over_all(lambda x: Image.fromarray(x).convert("L").convert("RGB"))
    digest = hashlib.sha256()
    a, b = (Image.fromarray(x) for x in np.mgrid[0:256, 0:256].astype(np.uint8))
    for factor in (0.0, 0.3, 0.5, 0.77, 1.0, 1.25, 1.4999):
        digest.update(array(Image.blend(a, b, factor)).tobytes())
    yield "blend", digest.hexdigest()


if __name__ == "__main__":
    save_file(decode_files(), HERE / "decode.safetensors")
    save_file(op_values() | box_values(), HERE / "transform.safetensors")
    cases = ",\n".join(json.dumps(case) for case in resize_cases())
    (HERE / "transform_resize.json").write_text(f"[\n{cases}\n]\n")
    for name, digest in sums():
        print(f"{name:12} {digest}")
