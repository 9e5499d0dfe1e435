"""Digests of MultiNLI's tokens as Python's tokenizers makes them, for tests/tokens.rs.

    pip install tokenizers==0.22.2 pyarrow
    python tokens.py MIRROR > tokens.json

MIRROR holds datasets/nyu-mll/multi_nli and models/sentence-transformers/all-MiniLM-L6-v2. All pairs in the order of the
files, 128 tokens, numbers as little-endian u32; then every pair again at other lengths, odd ones too.
"""
import hashlib, json, struct, sys
import pyarrow.parquet as pq
from tokenizers import Tokenizer

root = sys.argv[1]
data = f"{root}/datasets/nyu-mll/multi_nli/data"
path = f"{root}/models/sentence-transformers/all-MiniLM-L6-v2/tokenizer.json"
pairs = []
for name in ["train", "validation_matched", "validation_mismatched"]:
    table = pq.read_table(f"{data}/{name}-00000-of-00001.parquet", columns=["premise", "hypothesis"])
    pairs += zip(table["premise"].to_pylist(), table["hypothesis"].to_pylist())
vocabulary = json.load(open(path))["model"]["vocab"]
words = sorted(vocabulary, key=vocabulary.get)
out = {"pairs": len(pairs), "vocab.txt": hashlib.sha256("".join(w + "\n" for w in words).encode()).hexdigest()}
for length in [128, 33, 24]:
    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_padding()
    tokenizer.enable_truncation(length, strategy="longest_first")
    ids, types, lengths = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    for e in tokenizer.encode_batch(pairs):
        pad = length - len(e.ids)
        ids.update(struct.pack(f"<{length}I", *e.ids, *[0] * pad))
        types.update(bytes(e.type_ids + [0] * pad))
        lengths.update(struct.pack("<I", len(e.ids)))
    out[str(length)] = {"ids": ids.hexdigest(), "types": types.hexdigest(), "lengths": lengths.hexdigest()}
print(json.dumps(out, indent=1))
