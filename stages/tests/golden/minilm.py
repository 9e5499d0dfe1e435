"""Makes golden/minilm.safetensors: the losses of fine-tuning MiniLM (all-MiniLM-L6-v2) on the first pairs of MultiNLI's
training file, step by step, in PyTorch's float32 with dropout off; and the tokens of these pairs.

python minilm.py HUB [STEPS FILE]     HUB has datasets/nyu-mll/multi_nli and models/sentence-transformers/all-MiniLM-L6-v2
                                      made with torch 2.12 and tokenizers 0.22.2; more STEPS go to another FILE, which the
                                      test reads where ITPIPE_MINILM names it
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from safetensors.torch import load_file
from tokenizers import Tokenizer

from models import Bert, fill

BATCH, LENGTH, RATE, CLIP, KEPT = 32, 128, 5e-5, 1.0, 20
# The schedule's length: an epoch of the mirror's training pairs.
STEPS = 244


def pairs(hub, n):
    table = parquet.read_table(hub / "datasets/nyu-mll/multi_nli/data/train-00000-of-00001.parquet").slice(0, n)
    tokenizer = Tokenizer.from_file(str(hub / "models/sentence-transformers/all-MiniLM-L6-v2/tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LENGTH, strategy="longest_first")
    texts = zip(table["premise"].to_pylist(), table["hypothesis"].to_pylist())
    # Group DRO's labels: contradiction, entailment, neutral.
    return tokenizer.encode_batch(list(texts)), [(1, 2, 0)[label] for label in table["label"].to_pylist()]


def batch(texts):
    length = max(len(t.ids) for t in texts)
    rows = lambda values: [v + [0] * (length - len(v)) for v in values]
    return torch.tensor(
        list(zip(rows([t.ids for t in texts]), rows([t.type_ids for t in texts]), rows([t.attention_mask for t in texts])))
    )


def losses(hub, texts, labels, steps):
    model = Bert(30522, 384, 6, 12, 1536, 512, 3)
    published = load_file(hub / "models/sentence-transformers/all-MiniLM-L6-v2/model.safetensors")
    weights = {f"bert.{name}": tensor for name, tensor in published.items() if not name.endswith("position_ids")}
    weights |= {name: fill(name, shape, 0.0) for name, shape in (("classifier.weight", (3, 384)), ("classifier.bias", (3,)))}
    model.load_state_dict(weights)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, eps=1e-8, weight_decay=0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        rows = slice(step * BATCH, (step + 1) * BATCH)
        loss = F.cross_entropy(model(batch(texts[rows])), torch.tensor(labels[rows]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        print(f"step {step}: {loss.item():.6f}", flush=True)
        yield loss.item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    hub, steps = Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else KEPT
    texts, labels = pairs(hub, steps * BATCH)
    found = np.array(list(losses(hub, texts, labels, steps)))
    if len(sys.argv) in (2, 4):
        tensors = {
            "losses": found,
            "labels": np.array(labels, dtype=np.uint8),
            "ids": np.concatenate([np.array(t.ids, dtype=np.uint16) for t in texts]),
            # Tokens of a pair, and of its first text.
            "lengths": np.array([len(t.ids) for t in texts], dtype=np.uint8),
            "firsts": np.array([t.type_ids.index(1) for t in texts], dtype=np.uint8),
        }
        save_file(tensors, sys.argv[3] if sys.argv[3:] else Path(__file__).parent / "minilm.safetensors")
