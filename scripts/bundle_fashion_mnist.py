"""Writes tests/data/hub: a small stratified sample of the real Fashion-MNIST in the Hub's own Parquet layout.

    python scripts/bundle_fashion_mnist.py FOLDER

FOLDER holds the full files as on the Hub: datasets/zalando-datasets/fashion_mnist/fashion_mnist/{train,test}-00000-of-00001.parquet.
The sample is the first TRAIN rows of each label of the train file and the first TEST of the test file, in the
published order, each PNG byte for byte. Needs pyarrow (written with pyarrow 26.0.1).
"""

import pathlib
import sys

import pyarrow as pa
import pyarrow.parquet as pq

REPO = "datasets/zalando-datasets/fashion_mnist/fashion_mnist"
ROWS = {"train": 200, "test": 60}


def main(source, root):
    for split, per_label in ROWS.items():
        name = f"{split}-00000-of-00001.parquet"
        table = pq.read_table(source / REPO / name)
        seen = {}
        rows = []
        for row, label in enumerate(table["label"].to_pylist()):
            seen[label] = seen.get(label, 0) + 1
            if seen[label] <= per_label:
                rows.append(row)
        assert len(rows) == 10 * per_label, (split, len(rows))
        # take() keeps the schema with its `huggingface` metadata; small row groups so that a reader meets several.
        sample = table.take(pa.array(rows)).combine_chunks()
        target = root / "tests/data/hub" / REPO / name
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(sample, target, row_group_size=500, compression="snappy")
        print(target, sample.num_rows, target.stat().st_size)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(__file__).resolve().parent.parent)
