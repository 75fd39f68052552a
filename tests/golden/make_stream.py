"""Golden values for the stream of shards.

Run:      python tests/golden/make_stream.py   (from the repository root)
Versions: braceexpand 0.1.7, webdataset 0.2.86, tarfile of CPython 3.11.7
Writes:   tests/golden/braceexpand.json: [[pattern, [strings] or null if refused], ...]
          tests/golden/tarfile.json: [[label, archive (gzip, hex), [[name, size, is_file,
              first 8 hex digits of the data's sha256], ...]], ...]: the members tarfile sees
          tests/golden/keys.json: [[name, [key, extension] or null], ...] of webdataset
"""

import gzip
import hashlib
import io
import json
import random
import tarfile
from pathlib import Path

from braceexpand import UnbalancedBracesError, braceexpand
from webdataset.tariterators import base_plus_ext

HAND = [
    "", "a", "plain.tar", "a/{00000..00012}.tar", "{0..3}", "{3..0}", "{1..10..3}", "{10..1..3}",
    "{1..10..-3}", "{01..3}", "{1..03}", "{-01..2}", "{2..-1}", "{-5..-001..2}", "{0..0}",
    "{5..5}", "{1..5..0}", "{a..e}", "{e..a}", "{a..i..3}", "{X..c}", "{c..X}", "{A..A}", "{C..A}",
    "{a,b}", "{a,b,}", "{,a}", "{,}", "{}", "{a}", "x{a}y", "{{a,b}}", "{a,{b,c}}", "{a{1,2},b}",
    "{a,b}{1..2}", "{1..2}{a,b}/{x,y}.tar", "{a{b,c{d,e}},f}", "d={2020}/{0..1}.tar", "{1..a}",
    "{a..1}", "{1..}", "{..1}", "{1...3}", "{1..2..3..4}", "{1.5..2}", "{ab..cd}", "{0,1..3}",
    "\\{a,b\\}", "{a\\,b,c}", "a\\\\b", "\\{{a,b}\\}", "end\\", "{a,b", "a,b}", "}{", "a}{b", "}",
    "{", "{{}", "{}}", "{a,b}}", "{{a,b}", "a{b{c}", "{,{,a}}", "{ä,ö}.tar", "a b/{x y,z}.tar",
    "*/{a,b}*.tar", "{00..09..4}", "{09..00..4}", "{0..-0}", "{-0..3}", "{000..3..2}",
]

NAMES = [
    "a.jpg", "a/b.jpg", "./a.b/c.jpg", "a.b/c", "a.seg.PNG", ".hidden.jpg", "a/.hidden", "noext",
    "a.", "a..b", "dir.d/x.y.z", "../../x.jpg", "/abs/x.TXT", "a//b.png", "a/b/", "", ".", "/.x",
    "000000012.jpg", "ä/ö.txt", "a b/c d.jpg", "x.jpg/y", "a./b.txt", "..", "a/..b.txt",
]


def braces(count):
    rng = random.Random(20)
    alphabet = ["{", "{", "}", "}", ",", ",", "a", "b", "1", "02", "..", "..", "-", "\\", "/", "Z"]
    drawn = ("".join(rng.choices(alphabet, k=rng.randint(1, 14))) for _ in range(count))
    for i, pattern in enumerate(dict.fromkeys([*HAND, *drawn])):
        try:
            yield [pattern, list(braceexpand(pattern))]
        except UnbalancedBracesError:
            if i < len(HAND):
                yield [pattern, None]


def archive(format, members):
    """members: (name, data, fields of TarInfo)"""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, data, fields in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def seal(header):
    """Gives a 512-byte header the checksum it should have."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)


def archives():
    rng = random.Random(7)
    plain = [("a.jpg", b"x" * 1000, {}), ("a.txt", b"a cat", {}), ("b.jpg", b"", {})]
    long = [("d/" * 70 + "x.jpg", b"1", {}), ("y" * 300 + ".txt", b"2", {}), ("z.txt", b"3", {})]
    kinds = [(f"k{t}.jpg", b"", {"type": bytes([t]), "linkname": "a.jpg"}) for t in b"0123456"]
    other = [("u.jpg", b"data", {"type": b"V"}), ("dir/", b"", {"type": b"5"}), *plain]
    unicode = [("ä" * 40 + ".jpg", b"1", {}), ("日本.txt", b"2", {})]
    sized = [("a.jpg", b"q" * 700, {"pax_headers": {"comment": "c" * 600}}), *plain]
    for label, format in [("ustar", tarfile.USTAR_FORMAT), ("gnu", tarfile.GNU_FORMAT),
                          ("pax", tarfile.PAX_FORMAT)]:
        for what, members in [("plain", plain), ("kinds", kinds), ("other", other),
                              ("long", long), ("unicode", unicode), ("sized", sized)]:
            if label != "ustar" or what not in ("long",):
                yield f"{label} {what}", archive(format, members)
    for label, claimed, real in [("larger", 2048, 700), ("smaller", 0, 1024), ("zero", 1024, 0)]:
        inner = archive(tarfile.USTAR_FORMAT, [("evil.txt", b"smuggled", {})])[:1024]
        body = (inner * 2)[:2048]
        tar = bytearray(archive(tarfile.PAX_FORMAT, [
            ("a.jpg", body, {"pax_headers": {"size": str(real)}}), *plain]))
        at = 1024
        tar[at + 124:at + 136] = b"%011o\0" % claimed
        header = bytearray(tar[at:at + 512])
        seal(header)
        tar[at:at + 512] = header
        yield f"pax size {label}", bytes(tar)
    for number in range(48):
        format = rng.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
        members = [(rng.choice(["a", "b" * 60 + "/" + "b" * 60, "ä"]) + f"{i}.jpg",
                    b"%d" % i * rng.choice([0, 1, 511, 512, 513, 1500]), {})
                   for i in range(4)]
        tar = bytearray(archive(format, members))
        for _ in range(2):
            at = 512 * rng.randrange(16)
            header = tar[at:at + 512]
            if header[257:262] != b"ustar":
                continue
            field = rng.choice(["size", "type", "name", "prefix", "base256"])
            if field == "size":
                header[124:136] = b"%011o\0" % rng.choice([0, 1, 512, 513, 1024])
            elif field == "base256":
                header[124:136] = b"\x80" + rng.choice([0, 700, 1 << 40]).to_bytes(11, "big")
            elif field == "type":
                header[156] = rng.choice(b"01234567LKxgSV\0")
            elif field == "name":
                header[0:100] = rng.randbytes(20).ljust(100, b"\0")
            else:
                header[345:355] = b"prefix/pre"
            seal(header)
            tar[at:at + 512] = header
        yield f"drawn {number}", bytes(tar)


def members(tar):
    seen = []
    try:
        with tarfile.open(fileobj=io.BytesIO(tar), mode="r:", errors="replace") as archive:
            for info in archive:
                if info.issparse() or info.size > 1 << 30:
                    break
                data = archive.extractfile(info).read() if info.isreg() else b""
                if info.isreg() and len(data) != info.size:
                    break
                name = info.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
                digest = hashlib.sha256(data).hexdigest()[:8]
                seen.append([name, len(data), info.isreg(), digest])
    except (tarfile.TarError, ValueError, OverflowError):
        pass
    return seen


def write(name, rows):
    lines = ",\n".join(json.dumps(row, ensure_ascii=True) for row in rows)
    Path(__file__).with_name(name).write_text(f"[\n{lines}\n]\n")


def main():
    write("braceexpand.json", braces(1500))
    rows = []
    for label, tar in archives():
        packed = gzip.compress(tar, mtime=0).hex()
        rows.append([label, packed, members(tar)])
    write("tarfile.json", rows)
    keys = ((name, base_plus_ext(name)) for name in NAMES)
    write("keys.json", [[n, None if k is None else [k, e.lower()]] for n, (k, e) in keys])


main()
