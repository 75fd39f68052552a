"""Golden values for src/data/jpeg.

Run:      python tests/golden/make_jpeg.py   (writes next to itself)
Versions: Python 3.11, Pillow 13.0.0 with libjpeg-turbo 3.2.0, numpy, safetensors; x86-64.

jpeg_sequential.safetensors, jpeg_progressive.safetensors:
  <case>.file     a small JPEG
  <case>.rgb      sha256 of the pixels that Pillow decodes, row by row, red first
  <case>.planes   [3, 32]: sha256 of the planes Y, Cb, Cr (grey: Y) that libjpeg decodes at 1/2, 1/4
                  and 1/8 (Pillow's draft mode), one after the other; where it needs no upsampling

What Pillow cannot write is made from what it can: other sampling factors by another frame header
on a stream with as many blocks in an MCU and as many MCUs, separate scans from grey pictures.
"""

import hashlib
import io
import pathlib
import struct

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).parent
SIZES = [(1, 1), (2, 3), (3, 2), (5, 33), (7, 9), (8, 8), (15, 17), (16, 16), (17, 15), (33, 31)]


def picture(width, height):
    """Waves, a ramp that wraps, and noise: every coefficient and both ends of the range."""
    rng = np.random.default_rng([width, height])
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 140 * np.sin(x / 3.7 + y / 9), 128 + 90 * np.cos(y / 5.1 - x / 7)]
    rgb = np.stack([*waves, (x * 7 + y * 13) % 256], -1) + rng.normal(0, 20, (height, width, 3))
    return Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))


def saved(image, **options):
    out = io.BytesIO()
    image.save(out, "JPEG", **options)
    return out.getvalue()


def segments(jpeg):
    """(marker, segment with its marker) up to the scan, and the rest."""
    at, found = 2, []
    while True:
        marker, length = jpeg[at + 1], struct.unpack(">H", jpeg[at + 2 : at + 4])[0]
        if marker == 0xDA:
            return found, jpeg[at:]
        found.append((marker, jpeg[at : at + 2 + length]))
        at += 2 + length


def rebuilt(jpeg, change):
    """The JPEG with every segment but the scans replaced by what `change` makes of it."""
    found, rest = segments(jpeg)
    return b"\xff\xd8" + b"".join(change(*segment) for segment in found) + rest


def reframed(jpeg, factors, width, height):
    def change(marker, segment):
        if marker not in (0xC0, 0xC2):
            return segment
        size = struct.pack(">HH", height, width)
        return segment[:5] + size + segment[9:11] + bytes([factors]) + segment[12:]

    return rebuilt(jpeg, change)


def named(jpeg, ids, *, keep=()):
    """Other names of the components; no segment APPn but those in `keep`."""

    def change(marker, segment):
        if marker in range(0xE0, 0xF0) and marker not in keep:
            return b""
        if marker == 0xC0:
            segment = bytearray(segment)
            segment[10::3] = ids
        return bytes(segment)

    head, rest = rebuilt(jpeg, change), segments(jpeg)[1]
    scan = bytearray(rest)
    scan[5:11:2] = ids
    return head[: -len(rest)] + bytes(scan)


def adobe(jpeg, transform):
    """JFIF's segment replaced by Adobe's."""
    segment = b"\xff\xee\0\x0eAdobe" + bytes([0, 100, 0, 0, 0, 0, transform])
    return rebuilt(jpeg, lambda marker, old: segment if marker == 0xE0 else old)


def wide_tables(jpeg):
    """Quantisation tables of 16 bits, and fill bytes before them."""

    def change(marker, segment):
        if marker != 0xDB:
            return segment
        values = b"".join(bytes([0, value]) for value in segment[5:69])
        return b"\xff\xff\xff\xff\xdb" + struct.pack(">HB", 131, 16 | segment[4]) + values

    return rebuilt(jpeg, change)


def separate(width, height, h, v):
    """A scan for each component, made of three grey pictures."""
    small = (-(-width // h), -(-height // v))
    sizes = [(width, height), small, (small[0], small[1])]
    greys = [saved(picture(*size).convert("L"), quality=70 + 9 * i) for i, size in enumerate(sizes)]
    out = b"\xff\xd8"
    for i, grey in enumerate(greys):
        for marker, segment in segments(grey)[0]:
            if marker == 0xDB:
                out += segment[:4] + bytes([i]) + segment[5:]
            if marker == 0xC4 and i == 0:
                out += segment
    components = bytes([1, h * 16 + v, 0, 2, 0x11, 1, 3, 0x11, 2])
    out += struct.pack(">HHBHHB", 0xFFC0, 17, 8, height, width, 3) + components
    for i, grey in enumerate(greys):
        scan = segments(grey)[1]
        out += scan[:5] + bytes([i + 1]) + scan[6:-2]
    return out + b"\xff\xd9"


def by_hand():
    """Two grey blocks, their DC values in three scans: no encoder sends more than two."""
    values = [37, -22]

    def segment(marker, body):
        return struct.pack(">HH", 0xFF00 | marker, 2 + len(body)) + bytes(body)

    def scan(bits, first, last, high, low):
        bits += "1" * (-len(bits) % 8)
        data = int(bits, 2).to_bytes(len(bits) // 8, "big")
        return segment(0xDA, [1, 1, 0, first, last, high << 4 | low]) + data

    counts = [1] + 15 * [0]
    tables = segment(0xC4, [0, *counts, 4]) + segment(0xC4, [16, *counts, 0])
    head = segment(0xDB, [0] + 64 * [24]) + segment(0xC2, [8, 0, 8, 0, 16, 1, 1, 0x11, 0])
    # Both differences of the values / 4, 9 and -15, take four bits: 1001 and 0000.
    scans = scan("01001" + "00000", 0, 0, 0, 2)
    for low in (1, 0):
        scans += scan("".join(str(value >> low & 1) for value in values), 0, 0, low + 1, low)
    return b"\xff\xd8" + head + tables + scans + scan("00", 1, 63, 0, 0) + b"\xff\xd9"


def sequential():
    cases = {}
    for n, (w, h) in enumerate(SIZES):
        image, size = picture(w, h), f"{w}x{h}"
        for name, subsampling in (("444", 0), ("422", 1), ("420", 2)):
            quality = (50, 90, 100)[(n + subsampling) % 3]
            cases[f"{size}_{name}"] = saved(image, subsampling=subsampling, quality=quality)
        across, down = -(-w // 16), -(-h // 8)
        stream = saved(image, subsampling=1, quality=85)
        cases[f"{size}_440"] = reframed(stream, 0x12, across * 8 - w % 8, down * 16 - h % 11)
        if n % 3 == 0:
            cases[f"{size}_grey"] = saved(image.convert("L"), quality=80)
            restart = dict(quality=85, restart_marker_blocks=1 + n % 2)
            cases[f"{size}_420_restart"] = saved(image, subsampling=2, **restart)
        if n % 3 == 2:
            across, down = -(-w // 16), -(-h // 16)
            stream = saved(image, subsampling=2, quality=85)
            cases[f"{size}_411"] = reframed(stream, 0x41, across * 32 - w % 23, down * 8 - h % 5)
    for h, v in ((1, 1), (2, 1), (2, 2), (1, 2)):
        cases[f"separate_{h}{v}"] = separate(19, 21, h, v)
    image = picture(12, 10)
    plain, rgb = saved(image, subsampling=0), saved(image, keep_rgb=True)
    cases["rgb_adobe"] = rgb
    cases["rgb_names"] = named(rgb, b"RGB")
    cases["ycc_names_123"] = named(plain, b"\1\2\3")
    cases["ycc_names_other"] = named(plain, b"\5\6\7")
    cases["ycc_jfif_named_rgb"] = named(plain, b"RGB", keep=(0xE0,))
    cases["adobe_0"] = adobe(plain, 0)
    cases["adobe_1"] = adobe(plain, 1)
    cases["adobe_1_named_rgb"] = named(adobe(plain, 1), b"RGB", keep=(0xEE,))
    cases["optimised_1"] = saved(image, quality=1, optimize=True)
    cases["optimised_100"] = saved(image, quality=100, subsampling=0, optimize=True)
    cases["wide_tables"] = wide_tables(saved(image, quality=30))
    cases["padded"] = plain[:-2] + b"\0\0\0\0\xff\xff\xd9trailing"
    hard = np.random.default_rng(3).integers(0, 2, (16, 16, 3), np.uint8) * 255
    cases["hard_100"] = saved(Image.fromarray(hard), quality=100, subsampling=0)
    return cases


def progressive():
    cases = {}
    for n, (w, h) in enumerate(SIZES):
        image, size = picture(w, h), f"{w}x{h}"
        for name, subsampling in (("444", 0), ("422", 1), ("420", 2)):
            if (n + subsampling) % 2 or w == 33:
                quality = (50, 90, 100)[n % 3]
                options = dict(progressive=True, subsampling=subsampling, quality=quality)
                cases[f"{size}_{name}"] = saved(image, **options)
        if n % 3 == 0:
            cases[f"{size}_grey"] = saved(image.convert("L"), quality=80, progressive=True)
            options = dict(progressive=True, subsampling=2, quality=85, restart_marker_rows=1)
            cases[f"{size}_420_restart"] = saved(image, **options)
    cases["dc_in_three"] = by_hand()
    smooth = Image.linear_gradient("L").resize((64, 48))
    cases["long_runs"] = saved(smooth, quality=60, progressive=True)
    hard = np.random.default_rng(3).integers(0, 2, (16, 16, 3), np.uint8) * 255
    cases["hard_100"] = saved(Image.fromarray(hard), quality=100, subsampling=0, progressive=True)
    return cases


def digest(array):
    return np.frombuffer(hashlib.sha256(np.ascontiguousarray(array)).digest(), np.uint8)


def planes(jpeg, scale):
    image = Image.open(io.BytesIO(jpeg))
    mode, (w, h) = "L" if image.mode == "L" else "YCbCr", image.size
    image.draft(mode, (w // scale, h // scale))
    decoded = np.asarray(image)
    assert image.mode == mode and image.size == (-(-w // scale), -(-h // scale))
    return decoded if decoded.ndim == 2 else decoded.transpose(2, 0, 1)


def write(name, cases):
    tensors = {}
    for case, jpeg in cases.items():
        image = Image.open(io.BytesIO(jpeg))
        tensors[f"{case}.file"] = np.frombuffer(jpeg, np.uint8)
        tensors[f"{case}.rgb"] = digest(np.asarray(image.convert("RGB")))
        kind = case.split("_")[-1]
        if kind in ("444", "420", "grey") and min(image.size) >= 8:
            digests = [digest(planes(jpeg, scale)) for scale in (2, 4, 8)]
            tensors[f"{case}.planes"] = np.stack(digests)
    save_file(tensors, HERE / f"{name}.safetensors")
    print(name, len(cases), (HERE / f"{name}.safetensors").stat().st_size)


write("jpeg_sequential", sequential())
write("jpeg_progressive", progressive())
