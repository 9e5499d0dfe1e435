#!/usr/bin/env python3
"""Times the store beside its limits (b3sum, a stat walk, cp), alternating, and prints medians and ratios.

    benches/hashing.sh [--big GIB] [--files N] [--rounds R] [--folder DIR]
"""
import argparse
import os
import resource
import shutil
import subprocess
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("--big", type=float, default=4, help="size of the large file in GiB")
parser.add_argument("--files", type=int, default=60_000, help="how many small files of 1 to 3 KB")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--folder", default="target/bench-store", help="made, filled and removed")
options = parser.parse_args()

TOOL = os.path.abspath("target/release/examples/store_bench")
B3SUM = os.path.abspath("target/peers/bin/b3sum")
THREADS = len(os.sched_getaffinity(0))
os.environ["RAYON_NUM_THREADS"] = str(THREADS)
ROOT = os.path.abspath(options.folder)
shutil.rmtree(ROOT, ignore_errors=True)
os.makedirs(ROOT)
os.chdir(ROOT)


def run(command):
    """Wall and CPU seconds of one command, and what it said."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(command, shell=isinstance(command, str), stdout=subprocess.PIPE, check=True)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, done.stdout.decode(errors="replace")


def median(values):
    return sorted(values)[len(values) // 2]


ROWS = []


def compare(what, gate, ours, limit, before=lambda: None):
    """Alternates the two commands; a limit that is a number is a time in seconds."""
    times = {"ours": [], "limit": []}
    for _ in range(options.rounds):
        for name, command in (("limit", limit), ("ours", ours)):
            if not isinstance(command, (int, float)):
                before()
                times[name].append(run(command))
    wall = median([t[0] for t in times["ours"]])
    cpu = median([t[1] for t in times["ours"]])
    limit_wall = limit if isinstance(limit, (int, float)) else median([t[0] for t in times["limit"]])
    limit_cpu = float("nan") if isinstance(limit, (int, float)) else median([t[1] for t in times["limit"]])
    ROWS.append((what, wall, cpu, limit_wall, limit_cpu, wall / limit_wall, gate, wall / limit_wall <= gate))
    print(f"{what}: {wall:.3f} s, limit {limit_wall:.3f} s, ratio {wall / limit_wall:.2f} (gate {gate})", file=sys.stderr)


def fresh():
    shutil.rmtree("cache/stat", ignore_errors=True)
    os.makedirs("cache/stat")


def no_restored():
    subprocess.run(["rm", "-rf", "restored"], check=True)


# The data: random, so that no file system makes it smaller; read once, so that the page cache has it.
block = os.urandom(64 << 20)
with open("big", "wb") as file:
    for i in range(int(options.big * 16)):
        file.write(i.to_bytes(8, "little") + block[8:])
for i in range(options.files):
    folder = f"small/{i % 60:02}"
    if i < 60:
        os.makedirs(folder)
    with open(f"{folder}/{i // 60:05}.bin", "wb") as file:
        at = (i * 2654435761) % (60 << 20)
        file.write(block[at:at + 1000 + (i * 7919) % 2001])
os.sync()
run("cat big > /dev/null; find small -type f -print0 | xargs -0 cat > /dev/null")
time.sleep(1)

digest = run([TOOL, "digest", "big"])[2].strip()
assert run([B3SUM, "--no-names", "big"])[2].strip() == digest, "the digests differ"
b3sum_small = f"find small -type f -print0 | xargs -0 -P {THREADS} -n {-(-options.files // THREADS)} {B3SUM} --num-threads 1"
walk = "find small -printf '%s %T@\\n'"
cached_big = [TOOL, "cached", "cache", "big"]
cached = [TOOL, "cached", "cache", "small"]

compare(f"{options.big:g} GiB file, first", 1.3, cached_big, [B3SUM, "--num-threads", str(THREADS), "big"], fresh)
fresh()
run(cached_big)
compare(f"{options.big:g} GiB file, again (limit: 20 ms)", 1.0, cached_big, 0.020)
compare(f"{options.files} small files, first", 1.4, cached, b3sum_small, fresh)
fresh()
run(cached)
compare(f"{options.files} small files, again (limit: a stat walk)", 2.0, cached, walk)
added = iter(range(10**6))


def add():
    with open(f"small/07/added{next(added)}", "wb") as file:
        file.write(os.urandom(2000))
    time.sleep(0.05)


compare("one file added (limit: a stat walk)", 2.5, cached, walk, add)
tree = run([TOOL, "import", "cache", "small"])[2].strip()


def ready():
    """Taking links away by hand makes the store read the blobs again; itpipe takes away its own, and knows."""
    no_restored()
    run([TOOL, "complete", "cache", tree])


for how, copy in (("hardlink", "cp -al"), ("copy", "cp -a")):
    compare(f"restore of the small files by {how} (limit: {copy})", 1.4,
            [TOOL, "restore", "cache", tree, "restored", how], f"{copy} small restored", ready)
no_restored()

print(f"{THREADS} threads, {options.rounds} alternating rounds, medians; wall (CPU) in seconds\n")
print("| | ours | limit | ratio | gate | |")
print("|---|---|---|---|---|---|")
for what, wall, cpu, limit_wall, limit_cpu, ratio, gate, holds in ROWS:
    limit = f"{limit_wall:.3f} ({limit_cpu:.2f})" if limit_cpu == limit_cpu else f"{limit_wall:.3f}"
    print(f"| {what} | {wall:.3f} ({cpu:.2f}) | {limit} | {ratio:.2f} | {gate} | {'holds' if holds else 'MISSED'} |")
shutil.rmtree(ROOT)
sys.exit(0 if all(row[-1] for row in ROWS) else 1)
