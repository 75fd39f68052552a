"""Tables of the caption cleaner and the CLIP vocabulary.

Run: python tests/golden/make_text_tables.py OUT_DIR   (OUT_DIR is src/data/text/assets)
Made with Python 3.11.7, open_clip_torch 3.3.0, ftfy 6.3.1, regex 2026.11.15.

  clip_bpe.txt.gz  the 48,895 lines of OpenAI's vocabulary that CLIP uses (one header, 48,894 merges)
  html5.txt        named character references of HTML: `name code-points`, sorted by name
  unicode.txt      general categories L and Nd as `first-last` ranges
  mojibake.txt     code pages, and the classes of characters that mojibake is made of
"""

import gzip
import html.entities
import io
import os
import sys

import ftfy.bad_codecs  # registers the sloppy code pages
import ftfy.badness
import ftfy.chardata
import open_clip.tokenizer
import regex

import re._parser as sre


def ranges(points):
    points, out = sorted(set(points)), []
    for p in points:
        if out and out[-1][1] == p - 1:
            out[-1][1] = p
        else:
            out.append([p, p])
    return " ".join(f"{a:x}" if a == b else f"{a:x}-{b:x}" for a, b in out)


def members(chars):
    """Code points of a character class written as in a regular expression."""
    found = []
    for op, arg in sre.parse(f"[{chars}]").data[0][1] if len(chars) > 1 else []:
        lo, hi = arg if isinstance(arg, tuple) else (arg, arg)
        found.extend(range(lo, hi + 1))
    return found


def vocabulary():
    text = gzip.open(open_clip.tokenizer.default_bpe()).read().decode("utf-8")
    lines = text.split("\n")[: 49152 - 256 - 2 + 1]
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=9, mtime=0, filename="") as f:
        f.write(("\n".join(lines) + "\n").encode("utf-8"))
    return buffer.getvalue()


def entities():
    rows = []
    for name, value in sorted(html.entities.html5.items()):
        rows.append(name + " " + " ".join(f"{ord(c):x}" for c in value))
    return rows


def unicode_classes():
    every = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    for name in ("L", "Nd"):
        pattern = regex.compile(r"\p{%s}" % name)
        yield f"{name}: " + ranges(c for c in every if pattern.match(chr(c)))


def mojibake():
    for name in ftfy.chardata.CHARMAP_ENCODINGS:
        page = bytes(range(0x80, 0x100)).decode(name)
        yield f"page {name}: " + " ".join(f"{ord(c):x}" for c in page)
    for name, chars in ftfy.badness.MOJIBAKE_CATEGORIES.items():
        yield f"class {name}: " + ranges(members(chars))
    for name, chars in ftfy.chardata.UTF8_CLUES.items():
        yield f"class {name}: " + ranges(members(chars))


def main():
    out = sys.argv[1]
    write = lambda name, data: open(os.path.join(out, name), "wb").write(data)
    lines = lambda rows: ("\n".join(rows) + "\n").encode("ascii")
    write("clip_bpe.txt.gz", vocabulary())
    write("html5.txt", lines(entities()))
    write("unicode.txt", lines(unicode_classes()))
    write("mojibake.txt", lines(mojibake()))


main()
