#!/usr/bin/env python3
"""Two corpora of photographs for `benches/loader.rs` and `scripts/loader_peers.py`.

    loader_corpus.py OUT [--pictures500 2000] [--pictures1024 1000]

Writes OUT/500 and OUT/1024, WebDataset shards of 1,000 pairs: pictures around 500x375 and around
1024x768, baseline JPEG at 4:2:0 and qualities from 85 to 92, with a caption each. They are parts
of photographs of many megapixels that Debian packages as desktop backgrounds (Creative Commons and
GPL, each as its package says), shrunk as the web shrinks them. Needs Debian's apt-get and dpkg-deb,
and Pillow; nothing is installed. The same packages and the same Pillow give the same bytes.
"""

import argparse
import io
import pathlib
import random
import re
import subprocess
import tarfile

PACKAGES = ["lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04", "mate-backgrounds"]
SHARD = 1000
# Sides of pictures, landscape; a quarter of them are turned upright.
SIZES = {
    "500": [(500, 375), (500, 375), (500, 333), (512, 384), (480, 360), (520, 390)],
    "1024": [(1024, 768), (1024, 768), (1024, 683), (1000, 750), (1080, 810)],
}
# Bytes a pixel, below which a part is sky or blur and decodes faster than pictures do.
LEAST_DETAIL = 0.11

KINDS = ["photo", "picture", "stock photo", "close-up", "detail", "view", "snapshot", "photograph"]
LOOKS = ["bright", "quiet", "colourful", "sharp", "wide", "early morning", "outdoor", "beautiful",
         "high-resolution", "framed", "vintage", "dramatic", "soft"]
ENDS = ["", "", "", " for your desktop", " - free download", " | gallery", " (part {n})",
        " taken on holiday in {year}", ", {year}", " by an amateur photographer",
        " & more wallpapers", ", printed on canvas: 60 x 40 cm", " #{n}", "... all {n} pictures"]


def photographs(folder):
    """Every photograph of the packages with its name, unpacked below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        if not (folder / package).exists():
            subprocess.run(["apt-get", "download", "-q", package], cwd=folder, check=True)
            [archive] = folder.glob(f"{package}_*.deb")
            subprocess.run(["dpkg-deb", "-x", archive, folder / package], check=True)
            archive.unlink()
    found = sorted(p for p in folder.rglob("*.jpg") if not p.is_symlink())
    drawn = {"abstract", "desktop"}
    return [(p, title(p.stem)) for p in found if p.parent.name not in drawn]


def title(stem):
    """`Infinite-Sea_by_Aury88` is called `infinite sea`."""
    words = re.sub(r"(_+by_.*|_\d+x\d+)$", "", stem)
    return re.sub(r"[_-]+|(?<=[a-z])(?=[A-Z])", " ", words).lower()


def caption(name, draw):
    look = f"{draw.choice(LOOKS)} " if draw.random() < 0.6 else ""
    end = draw.choice(ENDS).format(n=draw.randint(1, 400), year=draw.randint(1998, 2026))
    return f"{draw.choice(['A', 'a', 'the'])} {look}{draw.choice(KINDS)} of {name}{end}"


def part(photograph, size, draw):
    """A part of a photograph at this size, as the web would store it, and its quality; None where
    the photograph is too small or nothing is to be seen."""
    from PIL import Image

    width, height = size
    most = min(photograph.width / width, photograph.height / height)
    if most < 1:
        return None
    scale = draw.uniform(1, min(most, 4))
    wide, high = int(width * scale), int(height * scale)
    left = draw.randint(0, photograph.width - wide)
    top = draw.randint(0, photograph.height - high)
    box = (left, top, left + wide, top + high)
    shrunk = photograph.resize(size, Image.Resampling.LANCZOS, box)
    out = io.BytesIO()
    shrunk.save(out, "JPEG", quality=draw.randint(85, 92), subsampling="4:2:0")
    data = out.getvalue()
    return data if len(data) >= LEAST_DETAIL * width * height else None


def check(data):
    """That a picture is what the bench is about: baseline, chroma halved both ways."""
    at = 2
    while data[at + 1] != 0xC0:
        assert data[at + 1] not in (0xC1, 0xC2, 0xDA), "not a baseline JPEG"
        at += 2 + int.from_bytes(data[at + 2:at + 4], "big")
    frame = data[at + 4:at + 19]
    assert frame[5] == 3 and [frame[7], frame[10], frame[13]] == [0x22, 0x11, 0x11], "not 4:2:0"


def pairs(sources, sizes, count, draw):
    from PIL import Image

    pictures, photographs_left = [], len(sources)
    for path, name in sources:
        photograph = Image.open(path).convert("RGB")
        wanted, tries = -(-(count - len(pictures)) // photographs_left), 0
        photographs_left -= 1
        while wanted > 0 and tries < 400:
            tries += 1
            size = draw.choice(sizes)
            size = size[::-1] if draw.random() < 0.25 else size
            data = part(photograph, size, draw)
            if data:
                check(data)
                pictures.append((data, caption(name, draw), size))
                wanted -= 1
    draw.shuffle(pictures)
    return pictures[:count]


def write(folder, pictures):
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(pictures), SHARD):
        path = folder / f"{first // SHARD:06}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as shard:
            for n, (data, text, _) in enumerate(pictures[first:first + SHARD], first):
                for extension, content in [("jpg", data), ("txt", text.encode())]:
                    member = tarfile.TarInfo(f"{n:09}.{extension}")
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--pictures500", type=int, default=2000)
    parser.add_argument("--pictures1024", type=int, default=1000)
    arguments = parser.parse_args()
    sources = photographs(arguments.out / "sources")
    for name, count in [("500", arguments.pictures500), ("1024", arguments.pictures1024)]:
        pictures = pairs(sources, SIZES[name], count, random.Random(name))
        write(arguments.out / name, pictures)
        size = sum(len(data) for data, _, _ in pictures)
        pixels = sum(width * height for _, _, (width, height) in pictures)
        print(f"{arguments.out / name}: {len(pictures)} pictures of {size // len(pictures)} bytes "
              f"and {pixels // len(pictures)} pixels, {size / pixels:.3f} bytes a pixel")


if __name__ == "__main__":
    main()
