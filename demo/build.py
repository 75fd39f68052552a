"""Builds the demonstration data: emoji in four styles, three drawings of each to train on.

The fourth drawing of each, of a style drawn by lot, is for the test.

Inputs, by package name (downloaded, never installed or unpacked):

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 openmoji@17.0.0 \
             @lobehub/fluent-emoji-3d@1.1.0 emojibase-data@17.0.0

Run with Python 3.11, pillow 13.0.0, resvg-py 0.5.0 and zstandard 0.25.0:

    python build.py FOLDER_OF_THE_FIVE_ARCHIVES [OUTPUT_FOLDER]

The same archives give the same bytes: archives are checked by SHA-256, every random choice is
seeded by what it is about, and the tar headers carry no time and no owner.
"""

import hashlib
import io
import json
import random
import re
import sys
import tarfile
from pathlib import Path

import resvg_py
import zstandard
from PIL import Image, ImageDraw, ImageFont

SEED = 2023
SIDE = 32  # pixels, both ways
PAD = 0.06  # white margin, as a share of SIDE, on each side
TRAIN_SHARDS = 4

NAMES = "emojibase-data-17.0.0.tgz"
ARCHIVES = {
    NAMES: "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    "emoji-datasource-google-16.0.0.tgz":
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "emoji-datasource-twitter-16.0.0.tgz":
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    "openmoji-17.0.0.tgz": "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
    "lobehub-fluent-emoji-3d-1.1.0.tgz":
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
}
# style: (archive, member for a lower-case code point sequence, licence)
STYLES = {
    "Noto Emoji": (
        "emoji-datasource-google-16.0.0.tgz", "package/img/google/64/{}.png", "Apache-2.0"),
    "Twemoji": (
        "emoji-datasource-twitter-16.0.0.tgz", "package/img/twitter/64/{}.png", "CC-BY-4.0"),
    "OpenMoji": ("openmoji-17.0.0.tgz", "package/color/svg/{}.svg", "CC-BY-SA-4.0"),
    "Fluent Emoji 3D": ("lobehub-fluent-emoji-3d-1.1.0.tgz", "package/assets/{}.webp", "MIT"),
}
# {l} name, {a} name with its article where one is sure, {t} tags, {g} CLDR subgroup.
CAPTIONS = [
    "{l} emoji", "a picture of {a}", "a drawing of {a}", "icon showing {a}", "this is {a}",
    "{l}: {t}", "{l}, {t}", "{l} ({t})", "{l} - {t}", "{t}: {l}", "{l} emoji, {t}",
    "a picture of {a}, {t}", "a drawing of {a} ({t})", "icon showing {a}: {t}",
    "a small picture of {a}, {t}", "emoji for {t}: {l}", "{l}, {g}", "{g}: {l}, {t}",
    "an icon of {a}, {g}", "a picture from {g}: {l}",
]  # fmt: skip
TEMPLATES = ["{c}", "{c} emoji", "a picture of {c}", "a drawing of {c}", "icon showing {c}"]

# Subgroups whose names are singular things, so that "a" or "an" goes before them.
COUNTABLE = re.compile(
    r"animal-|food-fruit|transport-(ground|water|air)|place-building|musical-instrument|tool|"
    r"clothing|computer|phone|person-role|person-fantasy|person$|body-parts|plant-flower"
)
PERSON = re.compile(r"(man|woman|person|boy|girl|child|baby)\b")
NO_ARTICLE = re.compile(r"(?<![su])s$|people|men\b|wood$|construction$|coral$|breast-feeding")
SOUNDS_LIKE_YOU = re.compile(r"uni|ewe|one\b|one-")


def read_archives(folder):
    """The members that may be needed, as bytes by (archive, member); each archive is checked."""
    wanted = {(archive, str(Path(member).parent)) for archive, member, _ in STYLES.values()}
    wanted.add((NAMES, "package/en"))
    files = {}
    for archive, expected in ARCHIVES.items():
        found = hashlib.sha256((folder / archive).read_bytes()).hexdigest()
        if found != expected:
            sys.exit(f"{folder / archive}: SHA-256 is {found}, expected {expected}")
        with tarfile.open(folder / archive) as tar:
            for member in tar:
                if (archive, str(Path(member.name).parent)) in wanted and member.isfile():
                    files[archive, member.name] = tar.extractfile(member).read()
    return files


def find(files, style, hexcode):
    """Where `style` draws `hexcode`, or None; packages disagree about the selector FE0F."""
    archive, pattern, _ = STYLES[style]
    bare = hexcode.lower().replace("-fe0f", "")
    for code in (hexcode.lower(), bare, bare + "-fe0f"):
        member = pattern.format(code.upper() if style == "OpenMoji" else code)
        if (archive, member) in files:
            return archive, member
    return None


def concepts(files):
    """Emoji that all four styles draw, in CLDR order, as dicts of name, tags, group, drawings.

    Skin tones never appear (they hang below their base emoji), components have no subgroup that
    is drawn, flags of countries and regions are not part of Fluent Emoji, and a family spelled
    out member by member is the same silhouette many times over.
    """
    data = json.loads(files[NAMES, "package/en/data.json"])
    messages = json.loads(files[NAMES, "package/en/messages.json"])
    groups = {group["order"]: group["key"] for group in messages["groups"]}
    subgroups = {sub["order"]: sub["key"] for sub in messages["subgroups"]}
    for emoji in data:
        if emoji.get("group") is None or groups[emoji["group"]] == "component":
            continue
        group, name = subgroups[emoji["subgroup"]], plain(emoji["label"])
        if group in ("country-flag", "subdivision-flag") or name.startswith("family:"):
            continue
        drawings = {style: find(files, style, emoji["hexcode"]) for style in STYLES}
        if all(drawings.values()):
            tags = [plain(tag) for tag in emoji["tags"] if tag.lower() not in name.lower()]
            yield dict(
                hexcode=emoji["hexcode"], name=name, tags=tags, group=group, drawings=drawings
            )


def plain(text):
    """Straight quotation marks, as people type them."""
    return text.translate(str.maketrans("’‘“”", "''\"\""))


def draw(files, drawing, side, ground="white"):
    """The emoji on a square of `side` pixels: cut to what is drawn, padded, scaled down."""
    raw = files[drawing]
    if drawing[1].endswith(".svg"):
        svg = dict(svg_string=raw.decode(), width=256, height=256, skip_system_fonts=True)
        raw = bytes(resvg_py.svg_to_bytes(**svg))
    image = Image.open(io.BytesIO(raw)).convert("RGBA")
    image = image.crop(image.getchannel("A").getbbox())
    edge = round(max(image.size) / (1 - 2 * PAD))
    square = Image.new("RGBA", (edge, edge), ground)
    square.alpha_composite(image, ((edge - image.width) // 2, (edge - image.height) // 2))
    return square.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)


def with_article(concept):
    name = concept["name"]
    countable = COUNTABLE.match(concept["group"]) or PERSON.match(name)
    if not countable or NO_ARTICLE.search(name) or ":" in name or name[0].isupper():
        return name
    vowel = name[0] in "aeiou" and not SOUNDS_LIKE_YOU.match(name)
    return f"{'an' if vowel else 'a'} {name}"


def held_out(concept):
    """The style whose drawing of this concept is for the test; a fourth of the concepts each."""
    return random.Random(f"{SEED} held out {concept['hexcode']}").choice(list(STYLES))


def training_styles(concept):
    return [style for style in STYLES if style != held_out(concept)]


def captions(concept):
    """One caption for each training drawing, each from another template; only true words."""
    dice = random.Random(f"{SEED} caption {concept['hexcode']}")
    pool = CAPTIONS if concept["tags"] else [c for c in CAPTIONS if "{t}" not in c]
    for template in dice.sample(pool, len(STYLES) - 1):
        tags = dice.sample(concept["tags"], min(len(concept["tags"]), dice.randint(2, 4)))
        yield template.format(
            l=concept["name"], a=with_article(concept), t=", ".join(tags),
            g=concept["group"].replace("-", " "),
        )  # fmt: skip


def webp(image):
    """Lossless but for the lowest bit of each channel, which nobody sees and costs an eighth."""
    image = image.point([value & 0xFE | value >> 7 for value in range(256)] * 3)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True, quality=100, method=6)
    return buffer.getvalue()


def credit(concept, style):
    record = dict(emoji=concept["hexcode"], name=concept["name"], source=style)
    return json.dumps(record | {"license": STYLES[style][2]}, ensure_ascii=False).encode()


def tar_bytes(samples):
    """A tar of (key, {extension: bytes}) samples, with no time and no owner in it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, parts in samples:
            for extension, data in parts.items():
                header = tarfile.TarInfo(f"{key}.{extension}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


def build_train(files, known, out):
    pairs = []
    for concept in known:
        for style, caption in zip(training_styles(concept), captions(concept), strict=True):
            image = webp(draw(files, concept["drawings"][style], SIDE))
            pairs.append({"webp": image, "txt": caption.encode(), "json": credit(concept, style)})
    random.Random(f"{SEED} order").shuffle(pairs)
    samples = [(f"{number:08d}", parts) for number, parts in enumerate(pairs)]
    size = -(-len(samples) // TRAIN_SHARDS)
    for shard in range(TRAIN_SHARDS):
        data = tar_bytes(samples[shard * size : (shard + 1) * size])
        packed = zstandard.ZstdCompressor(level=19, write_checksum=True).compress(data)
        (out / f"train-{shard:06d}.tar.zst").write_bytes(packed)


def build_eval(files, known, out):
    """The folder layout that CLIP_benchmark reads, one picture for each class."""
    rows = list(enumerate(known))
    # Shuffled, lest an evaluation that confuses row and class look perfect.
    random.Random(f"{SEED} eval order").shuffle(rows)
    samples = []
    for number, (label, concept) in enumerate(rows):
        image = webp(draw(files, concept["drawings"][held_out(concept)], SIDE))
        parts = {"webp": image, "cls": str(label).encode()}
        samples.append((f"s{number:07d}", parts))
    (out / "test").mkdir(parents=True, exist_ok=True)
    (out / "test/0.tar").write_bytes(tar_bytes(samples))
    (out / "test/nshards.txt").write_text("1\n")
    write_lines(out / "classnames.txt", [concept["name"] for concept in known])
    write_lines(out / "zeroshot_classification_templates.txt", TEMPLATES)


def write_lines(path, lines):
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


SHOWN = [
    "red apple", "dog face", "fox", "octopus", "penguin", "lady beetle", "sunflower", "cactus",
    "mushroom", "strawberry", "avocado", "hamburger", "hot beverage", "ice cream", "bus",
    "sailboat", "rocket", "house", "snowman", "guitar", "violin", "teddy bear", "alarm clock",
    "ghost",
]  # fmt: skip


def contact_sheet(files, known, path, tile=48, blocks=3):
    """Blocks of rows: a name and its four drawings, the held-out one on a tinted ground."""
    by_name = {concept["name"]: concept for concept in known}
    heads = ["Noto", "Twemoji", "OpenMoji", "Fluent"]
    label, top, margin, cell = 96, 34, 16, tile + 8
    block = label + len(STYLES) * cell
    rows = -(-len(SHOWN) // blocks)
    size = (2 * margin + blocks * block + (blocks - 1) * 20, top + rows * cell + margin)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    small, bold = ImageFont.load_default(11), ImageFont.load_default(12)
    ink, tint = (40, 44, 52), (222, 233, 250)
    for b in range(blocks):
        left = margin + b * (block + 20)
        for s, head in enumerate(heads):
            x = left + label + s * cell + cell // 2
            pen.text((x, 20), head, fill=ink, font=small, anchor="mm")
        for r, name in enumerate(SHOWN[b * rows : (b + 1) * rows]):
            y = top + r * cell
            pen.text((left, y + cell // 2), name, fill=ink, font=bold, anchor="lm")
            for s, style in enumerate(STYLES):
                x = left + label + s * cell
                held = style == held_out(by_name[name])
                if held:
                    pen.rounded_rectangle((x + 1, y + 1, x + cell - 2, y + cell - 2), 8, fill=tint)
                drawing = by_name[name]["drawings"][style]
                sheet.paste(draw(files, drawing, tile, tint if held else "white"), (x + 4, y + 4))
    sheet.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


def main():
    source = Path(sys.argv[1])
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent
    files = read_archives(source)
    known = list(concepts(files))
    assert len({concept["name"] for concept in known}) == len(known), "a class name twice"
    build_train(files, known, out)
    build_eval(files, known, out / "eval")
    contact_sheet(files, known, out / "contact-sheet.png")
    print(f"{len(known)} concepts: {3 * len(known)} training pairs, {len(known)} test pictures")


if __name__ == "__main__":
    main()
