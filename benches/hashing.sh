#!/bin/sh
# Times the store's digests and restores beside b3sum, a stat walk and cp: see benches/README.md.
set -eu
cd "$(dirname "$0")/.."
cargo build --release --example store_bench
[ -x target/peers/bin/b3sum ] || cargo install b3sum --version 1.8.7 --root target/peers
exec python3 benches/hashing.py "$@"
