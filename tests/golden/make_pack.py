"""Golden value for packing a Parquet list: two pictures and their captions.

Run:      python tests/golden/make_pack.py   (from the repository root)
Versions: pyarrow 26.0.1
Writes:   tests/golden/pack.parquet
"""

import pyarrow
import pyarrow.parquet

table = pyarrow.table({"title": ["a caption", "ü 2"], "n": [1, 2], "filepath": ["x.png", "y.png"]})
pyarrow.parquet.write_table(table, "tests/golden/pack.parquet", compression="zstd")
