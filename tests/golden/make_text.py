"""Golden values of the text modules.

Run: python tests/golden/make_text.py NLTK WORDNET
  NLTK     folder that holds the `nltk` package (an unpacked wheel will do)
  WORDNET  folder of WordNet 3.0 (Debian's wordnet-base: /usr/share/wordnet)
Made with Python 3.11.7 (Unicode 14), open_clip_torch 3.3.0, ftfy 6.3.1, regex 2026.11.15,
nltk 3.10.4, wordnet-base 3.0.

  text_tokens.json.gz   captions; token ids by open_clip's SimpleTokenizer (context length 77,
                        padding cut off); CRC-32 of the UTF-8 of each cleaned caption
  text_wordnet.json.gz  a WordNet database with all synsets of some words (Princeton's licence is
                        in its data files), and the synonyms that nltk finds for them in all of
                        WordNet
  text_eda.json.gz      captions, seeds and what EDA makes of them, by the re-implementation below

Characters that Unicode assigned after version 14 are left out: this Python neither lower-cases
nor normalises them, newer ones do.
"""

import gzip
import html.entities
import io
import json
import os
import random
import re._parser
import shutil
import sys
import tempfile
import unicodedata
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))


def write(name, value):
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    with open(os.path.join(HERE, name), "wb") as f:
        with gzip.GzipFile(fileobj=f, mode="wb", compresslevel=9, mtime=0, filename="") as g:
            g.write(data.encode("utf-8"))
    print(name, os.path.getsize(os.path.join(HERE, name)))


# ---------------------------------------------------------------- captions

WORDS = """a photo of the cat dog on my table in New York City's best sunset don't we'll they've
I'm he'd you're beautiful wallpaper HD 2019 1080p IMG_2034.jpg naïve café résumé Zürich señor
Привет мир Ελλάδα δοκιμή 北京 日本語 テスト 한국어 مرحبا שלום ไทย हिन्दी “quoted” ‘it’s’ — – … ™ © € £5 ½ ² Ⅷ ٣٤ ९
👩‍🚀 👨‍👩‍👧 😀 🏳️‍🌈 é ﬁne ﬂow ﬃ ＡＢＣ １２ ﾊﾟ ſ 'ſ İ ẞ ΟΔΟΣ Σ ŉ Ǆ""".split() + [
    "e\u0301", "\u200b", "\u200d", "\u202e", "\ufeff", "\0", "\x1b[31m", "\x1b[0m", "\u212a",
    "\u0345", "\u03b9\u0345", "\u02bcn", "\u0378", "\U000e0041"]
FIXED = """a photo of a cat
A diagram.
Tom &amp; Jerry &amp;amp; friends &lt;3 &#39;quoted&#x27; &eacute;t&EACUTE; &hellip;
&amp &copy2019 &notit; &nosuch; &#0; &#128; &#xD800; &#x110000; AT&T R&D; &
<b>bold</b> &amp; <i>italic</i>
schÃ¶n, sÃ³, voilÃ le travail, Ã la mode, fÃ cil
âœ” No problems â€œ like this â€\ufffd and itâ€™s â‚¬5
РџСЂРёРІРµС‚ РјРёСЂ
Ð¿Ñ€Ð¸Ð²ÐµÑ‚
ÃƒÂ©tÃƒÂ©
√© is MacRoman, ‚Äôs too
Ｆｕｌｌ　ｗｉｄｔｈ ﾊﾝｶｸ ﬁﬂﬃﬄﬅﬆ ĳ ǆ
I'll we'd you've they're it's don't I'm 'S 'LL ''s !'s 's's
1234567890 ١٢٣ ४५६ ⅷ ½ ² ① 〇 一二三
😀😀😀 👍🏽 👩‍👩‍👧‍👦 🇩🇪🇫🇷 1️⃣
مرحبا بالعالم שלום עולם \u202eabc\u202c
Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘
supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis
http://example.com/a_b-c.html?x=1&y=2 @user #hashtag $5.99 50% (c) [x] {y}""".split("\n") + [
    "", " ", "\n\t\r\n", "\0", "\ufeffBOM", "tab\tand\x0bVT\x0cFF\x1cFS\x85NEL\u2028LS\u3000IS",
    "\x1b[1;31mred\x1b[0m \x1b[K \x1b[\u0663m \x1b", "cat " * 74, "cat " * 75, "cat " * 76,
    "cat " * 500, "x" * 1000, "ab" * 400, "!" * 300, "é" * 300, "北" * 200, "😀" * 100,
    "\ud7ff\ue000\uffff\U0010ffff", "the \ufffd end", "&" * 50, "&amp;" * 60, "<" * 100,
    "Ã quele lugar sÃ³", "sÃ³ Ã s vezes", "sÃ³ Ã  la carte", "nÃ£o Ã quilo Ã quela", "comme Ã la maison",
    "x Â y", "caf√© – bar √©", "schÃ¶n À\nx", "schÃ¶n À\n", "schÃ¶n À", "schÃ¶n À\x80 x",
    "sÃ³ í\xa0\x80í°\n", "sÃ³ í\xa0\x80í°\x80 x", "sÃ³ í\xa0\x80 x", "itГўВЂВ™s fine", "ГўВЂВxa",
    "\x1b[\u0663m red \x1b[\xb2m"]


class Captions:
    """Strings that look for trouble."""

    def __init__(self, seed):
        import ftfy.badness
        import ftfy.chardata
        import regex

        self.random = random.Random(seed)
        self.pages = ftfy.chardata.CHARMAP_ENCODINGS
        classes = {**ftfy.badness.MOJIBAKE_CATEGORIES, **ftfy.chardata.UTF8_CLUES}
        self.classes = [self.members(chars) for chars in classes.values()]
        unassigned = regex.compile(r"\p{Cn}")
        self.is_old = lambda c: unicodedata.category(c) != "Cn" or bool(unassigned.match(c))

    @staticmethod
    def members(chars):
        found = []
        for _, arg in re._parser.parse(f"[{chars}]").data[0][1]:
            first, last = arg if isinstance(arg, tuple) else (arg, arg)
            found += map(chr, range(first, last + 1))
        return found

    def character(self):
        blocks = [(0x20, 0x7F)] * 6 + [(0x80, 0x250)] * 4 + [(0x2000, 0x2070)] * 2 + [
            (0, 0x20), (0x300, 0x370), (0x370, 0x500), (0xFF00, 0xFFF0), (0x2190, 0x2800),
            (0x500, 0xD800), (0xE000, 0x30000), (0xE0000, 0xE0200)]
        return chr(self.random.randrange(*self.random.choice(blocks)))

    def anything(self, longest=60):
        return "".join(self.character() for _ in range(self.random.randrange(1, longest)))

    def web(self):
        joint = self.random.choice([" ", " ", " ", "  ", ", ", ". ", "-", "/"])
        text = joint.join(self.random.choices(WORDS, k=self.random.randrange(1, 30)))
        return text.upper() if self.random.random() < 0.2 else text

    def mojibake(self):
        r = self.random
        text = r.choice([self.anything(10), " ".join(r.choices(WORDS, k=r.randrange(1, 5)))])
        for _ in range(r.choice([1, 1, 1, 2, 3])):
            page = r.choice(self.pages + ["sloppy-windows-1252"] * 5)
            text = text.encode("utf-8", "replace").decode(page)
        if r.random() < 0.3:
            text = text.replace("\xa0", " ")
        if r.random() < 0.2:
            lost = r.choice("\ufffd?")
            text = "".join(lost if ord(c) > 127 and r.random() < 0.1 else c for c in text)
        return r.choice(["", "", r.choice(WORDS) + " "]) + text + r.choice(["", "", " x", "\nx"])

    def suspects(self):
        pick = lambda: self.random.choice(self.random.choice(self.classes))
        plain = lambda: self.random.choice("abcXYZ .,?! 1_\n-<&;×²³œŒ")
        some = [self.random.choice([pick, pick, plain])() for _ in range(12)]
        return "".join(some[: self.random.randrange(1, 12)])

    def references(self):
        r, text = self.random, ""
        for _ in range(r.randrange(1, 6)):
            name = r.choice(list(html.entities.html5))
            number = r.choice([r.randrange(300), r.randrange(0x110000), 59, 38, 10**12])
            end = r.choice(["", ";", ";", "x;", " "])
            text += r.choice([
                "&" + name, "&" + name.rstrip(";") + end, "&" + name.upper(), "&amp;" + name,
                f"&#{number}{end}", f"&#x{number:x}{end}", "&" + self.anything(40) + end,
                "<b>", "&&#;", "\n"]) + r.choice(["", " ", r.choice(WORDS)])
        return text

    def contractions(self):
        parts = ["'", "'", "s", "t", "re", "ve", "m", "ll", "d", "ſ", "S", "’", "é", " ", "!", "1",
                 "\u0345", "\u0301", "ι", "\x1b[", "31", "m", "\r", "\n", "\x9b"]
        return "".join(self.random.choices(parts, k=self.random.randrange(1, 20)))

    def all(self, count):
        kinds = [self.web, self.anything, self.mojibake, self.mojibake, self.suspects,
                 self.references, self.contractions]
        out = list(FIXED)
        while len(out) < count:
            text = self.random.choice(kinds)()
            text = text.encode("utf-8", "replace").decode()
            if all(self.is_old(c) for c in text):
                out.append(text)
        return [c.encode("utf-8", "replace").decode() for c in out]


def tokens():
    from open_clip.tokenizer import SimpleTokenizer, _clean_lower

    tokenizer = SimpleTokenizer()
    captions = Captions(20).all(2400)
    rows = []
    for caption in captions:
        ids = tokenizer([caption])[0].tolist()
        rows.append(ids[: ids.index(tokenizer.eot_token_id) + 1])
    crc = [zlib.crc32(_clean_lower(caption).encode("utf-8")) for caption in captions]
    write("text_tokens.json.gz", {"captions": captions, "ids": rows, "crc": crc})


# ---------------------------------------------------------------- WordNet

NOUNS = """dog cat horse car bicycle house tree flower river mountain beach kitchen guitar cake
child woman man city bridge church bus knife leaf wolf box fox dish baby goose mouse ox axis
sunset snow umbrella photograph picture portrait table lamp wall boat harbour galore seven""".split()
OTHERS = """run running ran jump jumping sleep sleeping slept drink drinking stand stood carry
carries carried paint painted go went gone watch watches big bigger biggest happy happier nice
nicer red old older good better best quickly slowly very well far farther black white beautiful
wooden small smaller ancient bright brightest""".split()
PLURALS = """dogs cats horses churches buses knives leaves wolves boxes foxes dishes babies geese
mice oxen axes believes handkerchieves men women children cities photographs pictures""".split()
UNKNOWN = ["xqzt", "wug", "blorft"]
PARTS = [("n", "noun"), ("v", "verb"), ("a", "adj"), ("r", "adv")]


def reader(nltk_dir, wordnet_dir, scratch):
    """nltk's reader, with the two files added that Debian leaves out and synonyms do not need."""
    for name in os.listdir(wordnet_dir):
        if os.path.isfile(os.path.join(wordnet_dir, name)):
            shutil.copy(os.path.join(wordnet_dir, name), scratch)
    with open(os.path.join(scratch, "lexnames"), "w") as f:
        f.writelines(f"{i:02}\tx\t1\n" for i in range(45))
    open(os.path.join(scratch, "index.sense"), "w").close()
    sys.path.insert(0, nltk_dir)
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    nltk.data.path.append(scratch)

    class Reader(WordNetCorpusReader):
        def map_wn(self, version="wordnet"):
            """Maps between versions of WordNet; needs a second one and has no part in this."""

    return Reader(scratch, None)


def synonyms(corpus, word):
    found = set()
    for synset in corpus.synsets(word):
        for name in synset.lemma_names():
            name = name.replace("_", " ").replace("-", " ").lower()
            found.add("".join(c for c in name if c in "abcdefghijklmnopqrstuvwxyz "))
    return sorted(found - {word, ""})


def subset(corpus, wordnet_dir, words):
    """The files of a database with every synset of the words, at new offsets."""
    files = {}
    for pos, suffix in PARTS:
        forms = {form for word in words for form in corpus._morphy(word, pos)}
        index = {form: corpus._lemma_pos_offset_map[form][pos] for form in sorted(forms)}
        data = open(os.path.join(wordnet_dir, "data." + suffix), "rb").read()
        text = data[: data.index(b"\n00001740") + 1].decode()
        moved = {}
        for offset in sorted({offset for offsets in index.values() for offset in offsets}):
            line = data[offset : data.index(b"\n", offset)].decode().split()
            end = 4 + 2 * int(line[3], 16)
            moved[offset] = len(text)
            text += " ".join([f"{len(text):08}", *line[1:end], "000 | no gloss  \n"])
        files["data." + suffix] = text
        rows = []
        for line in open(os.path.join(wordnet_dir, "index." + suffix)):
            fields = line.split()
            if not line.startswith(" ") and fields[0] in index:
                offsets = index[fields[0]]
                head = fields[: len(fields) - len(offsets)]
                rows.append(" ".join(head + [f"{moved[o]:08}" for o in offsets]) + "  \n")
        files["index." + suffix] = "".join(rows)
        lines = open(os.path.join(wordnet_dir, suffix + ".exc"))
        files[suffix + ".exc"] = "".join(line for line in lines if line.split()[0] in words)
    return files


# ---------------------------------------------------------------- EDA


class Philox:
    """The random stream of the crate: Philox4x32-10 keyed by seed, domain, epoch and sample."""

    def __init__(self, seed, domain, epoch, sample):
        self.key = [seed & 0xFFFFFFFF, seed >> 32]
        self.counter = [0, domain << 24 | epoch & 0xFFFFFF, sample & 0xFFFFFFFF, sample >> 32]
        self.words = []

    def block(self):
        (a, b, c, d), (k, l) = self.counter, self.key
        for _ in range(10):
            p, q = a * 0xD2511F53, c * 0xCD9E8D57
            a, b, c, d = q >> 32 ^ b ^ k, q & 0xFFFFFFFF, p >> 32 ^ d ^ l, p & 0xFFFFFFFF
            k, l = k + 0x9E3779B9 & 0xFFFFFFFF, l + 0xBB67AE85 & 0xFFFFFFFF
        self.counter[0] += 1
        return [a, b, c, d]

    def u64(self):
        if not self.words:
            self.words = self.block()
        low, high, *self.words = self.words
        return low | high << 32

    def below(self, n):
        while True:
            wide = self.u64() * n
            if wide % 2**64 >= 2**64 % n:
                return wide >> 64

    def chance(self, p):
        return (self.u64() >> 11) / 2**53 < p

    def shuffle(self, items):
        for i in range(len(items) - 1, 0, -1):
            j = self.below(i + 1)
            items[i], items[j] = items[j], items[i]


STOP = set("""i me my myself we our ours ourselves you your yours yourself yourselves he him his
himself she her hers herself it its itself they them their theirs themselves what which who whom
this that these those am is are was were be been being have has had having do does did doing a an
the and but if or because as until while of at by for with about against between into through
during before after above below to from up down in out on off over under again further then once
here there when where why how all any both each few more most other some such no nor not only own
same so than too very s t can will just don should now""".split())
assert len(STOP) == 127


def clean(line):
    line = line.replace("’", "").replace("'", "")
    line = line.replace("-", " ").replace("\t", " ").replace("\n", " ").lower()
    return "".join(c if c in "abcdefghijklmnopqrstuvwxyz " else " " for c in line).split()


def eda(caption, table, rng):
    """EDA by its description. `table` gives sorted synonyms, or is None."""
    words = clean(caption)
    if not words:
        return caption
    n = max(1, int(0.1 * len(words)))
    choice = rng.below(4) if table is not None else 2 + rng.below(2)
    look = lambda word: table.get(word, [])
    if choice == 0:
        pool = [w for w in dict.fromkeys(words) if w not in STOP]
        rng.shuffle(pool)
        for word in pool:
            if n == 0:
                break
            if look(word):
                new = look(word)[rng.below(len(look(word)))]
                words = [new if w == word else w for w in words]
                n -= 1
    elif choice == 1:
        for _ in range(n):
            for _ in range(10):
                options = look(words[rng.below(len(words))])
                if options:
                    words.insert(rng.below(len(words)), options[0])
                    break
    elif choice == 2:
        for _ in range(n):
            i = rng.below(len(words))
            for _ in range(3):
                j = rng.below(len(words))
                if i != j:
                    words[i], words[j] = words[j], words[i]
                    break
    elif len(words) > 1:
        kept = [w for w in words if not rng.chance(0.1)]
        words = kept or [words[rng.below(len(words))]]
    return " ".join(words)


def augmentations(table):
    r = random.Random(8)
    known = NOUNS + OTHERS + PLURALS + UNKNOWN
    small = ["a", "the", "of", "on", "in", "with", "and", "very"]
    fixed = ["", "北京 2019 !", "a", "Dog's", "the of", "DOG-cat\tHORSE\ncar, it’s 5% café",
             "İstanbul \u212aelvin", "wug blorft xqzt", "a the of on in", "dog", "dog " * 30,
             "seven galore", "&amp; <b>"]
    rows = []
    for sample in range(400):
        words = r.choices(known, k=r.randrange(1, r.choice([6, 20, 60])))
        words = [w for word in words for w in [r.choice(small), word][r.randrange(2) :]]
        caption = fixed[sample % len(fixed)] if sample < 60 else " ".join(words)
        synonyms_known = r.random() < 0.8
        rng = Philox(2**40 + 3, 4, sample % 5, sample)
        out = eda(caption, table if synonyms_known else None, rng)
        rows.append([caption, synonyms_known, sample % 5, sample, out])
    return rows


def main():
    nltk_dir, wordnet_dir = sys.argv[1:]
    tokens()
    with tempfile.TemporaryDirectory() as scratch:
        corpus = reader(nltk_dir, wordnet_dir, scratch)
        # All that EDA may look up: the words of the captions and what is inserted for them.
        extra = STOP | {"cafe", "caf", "stanbul", "kelvin", "amp", "b"}
        new = set(NOUNS + OTHERS + PLURALS + UNKNOWN) | extra
        table = {}
        while new:
            table |= {word: synonyms(corpus, word) for word in new}
            new = {found[0] for found in table.values() if found} - set(table)
        files = subset(corpus, wordnet_dir, set(table))
        write("text_wordnet.json.gz", {"files": files, "synonyms": table})
    write("text_eda.json.gz", augmentations(table))


main()
