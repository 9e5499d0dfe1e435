#!/usr/bin/env python3
"""Times itpipe beside ninja, make, DVC and Snakemake on the same stages: nothing to do, and from nothing on two jobs.

    benches/engine.py [--sizes 1000,5000] [--rounds 7] [--slow 100] [--plan 200000]

Installs the peers with pip below target/peers (make is the machine's). Each stage reads one small file and writes one by
built-ins of sh: a tenth of them a chain, four tenths read one hub, half stand alone; written out, no matrix. Alternating
rounds, medians. Build first: cargo build --release.
"""
import argparse
import os
import resource
import shutil
import subprocess
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("--sizes", default="1000,5000")
parser.add_argument("--rounds", type=int, default=7)
parser.add_argument("--slow", type=int, default=100, help="stages for DVC and Snakemake; 0 leaves them out")
parser.add_argument("--folder", help="where the stages lie; by default target/")
parser.add_argument("--plan", type=int, default=200_000, help="the largest simulated graph that is planned")
options = parser.parse_args()

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ITPIPE = os.path.join(REPO, "target/release/itpipe")
PEERS = os.path.join(REPO, "target/peers/venv")
ROOT = os.path.abspath(options.folder or os.path.join(REPO, "target"))
ROOT = os.path.join(ROOT, "bench-engine")
BIN = os.path.join(PEERS, "bin")
if not os.path.exists(os.path.join(BIN, "ninja")):
    subprocess.run([sys.executable, "-m", "venv", PEERS], check=True)
    subprocess.run([os.path.join(BIN, "pip"), "-q", "install", "ninja==1.13.2"], check=True)
if options.slow and not os.path.exists(os.path.join(BIN, "dvc")):
    subprocess.run([os.path.join(BIN, "pip"), "-q", "install", "dvc==3.67.1", "snakemake==9.27.1"], check=True)
os.environ.update(DVC_NO_ANALYTICS="1", HOME=ROOT)
shutil.rmtree(ROOT, ignore_errors=True)


def run(command, cwd, check=True):
    """Wall and CPU seconds, peak memory in MB."""
    start = time.perf_counter()
    child = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - start
    if check and status != 0:
        raise SystemExit(f"{command} in {cwd}: status {status}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def median(rows):
    return [sorted(row[i] for row in rows)[len(rows) // 2] for i in range(3)]


def upstream(i, n):
    """The stage that stage i reads; none: a file of its own."""
    chain = max(n // 10, 1)
    if i < chain:
        return i - 1 if i > 0 else None
    return chain - 1 if i < n // 2 else None


def write(folder, n):
    os.makedirs(f"{folder}/in")
    os.makedirs(f"{folder}/out")
    for i in range(n):
        with open(f"{folder}/in/{i}", "w") as file:
            file.write(f"{i}\n")
    return folder


def itpipe(n):
    folder = write(f"{ROOT}/itpipe-{n}", n)
    with open(f"{folder}/pipeline.yaml", "w") as file:
        file.write("version: 1\nstages:\n")
        for i in range(n):
            up = upstream(i, n)
            source = f"./in/{i}" if up is None else f"s{up}/x"
            file.write(f"  s{i}: {{ shell: 'read x < $in_f; echo $x > $out/x', in: {{ f: {source} }} }}\n")
    return [ITPIPE, "run", "-j", "2"], folder


def ninja(n):
    folder = write(f"{ROOT}/ninja-{n}", n)
    with open(f"{folder}/build.ninja", "w") as file:
        file.write("rule r\n  command = read x < $in; echo $$x > $out\n")
        for i in range(n):
            up = upstream(i, n)
            file.write(f"build out/{i}: r {f'in/{i}' if up is None else f'out/{up}'}\n")
    return [f"{BIN}/ninja", "-j", "2"], folder


def make(n):
    folder = write(f"{ROOT}/make-{n}", n)
    with open(f"{folder}/Makefile", "w") as file:
        file.write("all: " + " ".join(f"out/{i}" for i in range(n)) + "\n")
        for i in range(n):
            up = upstream(i, n)
            file.write(f"out/{i}: {f'in/{i}' if up is None else f'out/{up}'}\n\tread x < $<; echo $$x > $@\n")
    return ["make", "-s", "-j", "2"], folder


def dvc(n):
    folder = write(f"{ROOT}/dvc-{n}", n)
    subprocess.run([f"{BIN}/dvc", "init", "--no-scm", "-q"], cwd=folder, check=True)
    with open(f"{folder}/dvc.yaml", "w") as file:
        file.write("stages:\n")
        for i in range(n):
            up = upstream(i, n)
            source = f"in/{i}" if up is None else f"out/{up}"
            file.write(f"  s{i}:\n    cmd: read x < {source}; echo $x > out/{i}\n    deps: [{source}]\n    outs: [out/{i}]\n")
    return [f"{BIN}/dvc", "repro", "-q"], folder


def snakemake(n):
    folder = write(f"{ROOT}/snakemake-{n}", n)
    with open(f"{folder}/Snakefile", "w") as file:
        file.write("rule all:\n    input: " + ", ".join(f"'out/{i}'" for i in range(n)) + "\n")
        for i in range(n):
            up = upstream(i, n)
            source = f"in/{i}" if up is None else f"out/{up}"
            file.write(f"rule s{i}:\n    input: '{source}'\n    output: 'out/{i}'\n    shell: 'read x < {{input}}; echo $x > {{output}}'\n")
    return [f"{BIN}/snakemake", "-c", "2", "-q", "all"], folder


def child_cost(n=300):
    """CPU milliseconds of the shell of one stage itself, started from a small process."""
    script = f"for i in $(seq {n}); do /bin/sh -eu -c 'read x < /etc/hostname; echo $x > /dev/null' sh; done"
    empty = f"for i in $(seq {n}); do :; done"
    return 1e3 * (run(["/bin/sh", "-c", script], "/")[1] - run(["/bin/sh", "-c", empty], "/")[1]) / n


print(f"load {os.getloadavg()[0]:.1f}; medians of {options.rounds} alternating rounds; wall (CPU) in ms\n")
print("Nothing to do\n\n| stages | itpipe | ninja | make | itpipe/ninja, wall | CPU | peak MB, itpipe | ninja |\n|---|---|---|---|---|---|---|---|")
cold = {}
child = child_cost()
for n in [int(n) for n in options.sizes.split(",")]:
    tools = {"itpipe": itpipe(n), "ninja": ninja(n), "make": make(n)}
    for name, (command, folder) in tools.items():
        cold[name, n] = run(command, folder)
        run(command, folder)
    # What was written a moment ago is not trusted by its times yet: the second look makes it so.
    time.sleep(3)
    rows = {name: [] for name in tools}
    for _ in range(options.rounds):
        for name, (command, folder) in tools.items():
            rows[name].append(run(command, folder))
    m = {name: median(rows[name]) for name in tools}
    cell = lambda name: f"{m[name][0] * 1e3:.1f} ({m[name][1] * 1e3:.0f})"
    cpu = m["itpipe"][1] / max(m["ninja"][1], 1e-3)
    print(f"| {n} | {cell('itpipe')} | {cell('ninja')} | {cell('make')} | {m['itpipe'][0] / m['ninja'][0]:.2f} | {cpu:.1f} | {m['itpipe'][2]:.0f} | {m['ninja'][2]:.0f} |", flush=True)

print(f"\nFrom nothing, two jobs; once. The shell of a stage alone: {child:.2f} ms of CPU\n\n| stages | tool | wall s | CPU ms a stage | over the child |\n|---|---|---|---|---|")
for n in [100] + [int(n) for n in options.sizes.split(",")]:
    for name, tool in (("itpipe", itpipe), ("ninja", ninja), ("make", make)):
        if (name, n) not in cold:
            command, folder = tool(n)
            cold[name, n] = run(command, folder)
        wall, used, _ = cold[name, n]
        print(f"| {n} | {name} | {wall:.2f} | {1e3 * used / n:.2f} | {1e3 * used / n - child:.2f} |", flush=True)

if options.slow:
    n = options.slow
    print(f"\nSlow peers, {n} stages; from nothing once, nothing to do median of 3; wall (CPU) in s\n\n| tool | from nothing | nothing to do |\n|---|---|---|")
    for name, tool in (("itpipe", itpipe), ("DVC", dvc), ("Snakemake", snakemake)):
        if name == "itpipe" and ("itpipe", n) in cold:
            command, folder = [ITPIPE, "run", "-j", "2"], f"{ROOT}/itpipe-{n}"
            first = cold["itpipe", n]
        else:
            command, folder = tool(n)
            first = run(command, folder)
        again = median([run(command, folder) for _ in range(3)])
        print(f"| {name} | {first[0]:.2f} ({first[1]:.2f}) | {again[0]:.3f} ({again[1]:.3f}) |", flush=True)

if options.plan:
    print("\nA plan of a simulated graph, nothing made yet (chains of ten, an instance of a matrix each)\n\n| stages | wall s | CPU s | peak MB |\n|---|---|---|---|")
    size = 1000
    while size <= options.plan:
        folder = f"{ROOT}/plan-{size}"
        os.makedirs(folder)
        with open(f"{folder}/pipeline.yaml", "w") as file:
            file.write("version: 1\nstages:\n")
            values = ", ".join(str(i) for i in range(size // 10))
            for link in range(10):
                above = "" if link == 0 else f", in: {{ f: 's{link - 1}[{{i}}]' }}"
                file.write(f"  s{link}: {{ matrix: {{ i: [{values}] }}, shell: 'echo $param_i > $out/x', params: {{ i: '{{i}}' }}{above} }}\n")
        wall, used, memory = median([run([ITPIPE, "plan"], folder) for _ in range(3)])
        print(f"| {size} | {wall:.2f} | {used:.2f} | {memory:.0f} |", flush=True)
        size = {1000: 5000, 5000: 20000, 20000: 50000, 50000: 100000, 100000: 200000}.get(size, size * 2)
shutil.rmtree(ROOT)
