"""Golden values for the stream of shards.

Run:      python tests/golden/make_stream.py   (from the repository root)
Versions: braceexpand 0.1.7
Writes:   tests/golden/braceexpand.json: [[pattern, [strings] or null if refused], ...]
"""

import json
import random
from pathlib import Path

from braceexpand import UnbalancedBracesError, braceexpand

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


def drawn(count):
    rng = random.Random(20)
    alphabet = ["{", "{", "}", "}", ",", ",", "a", "b", "1", "02", "..", "..", "-", "\\", "/", "Z"]
    for _ in range(count):
        yield "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 14)))


def main():
    cases = []
    for pattern in dict.fromkeys(HAND + list(drawn(1500))):
        try:
            cases.append([pattern, list(braceexpand(pattern))])
        except UnbalancedBracesError:
            cases.append([pattern, None])
    kept = [case for i, case in enumerate(cases) if i < len(HAND) or case[1] is not None]
    out = Path(__file__).with_name("braceexpand.json")
    lines = ",\n".join(json.dumps(case, ensure_ascii=True) for case in kept)
    out.write_text(f"[\n{lines}\n]\n")


main()
