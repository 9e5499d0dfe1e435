#!/bin/sh
# Builds `stages` with CUDA on a machine that has neither a GPU nor a driver nor a CUDA toolkit: Rust, a C compiler,
# python3 with pip, about 6 GB of disk. From the root of the repository:
#
#     scripts/cuda_build.sh [--kernels] [further words for cargo, such as -j 1]
#
# The toolkit comes from PyPI, is unpacked below target/ and is used for nothing else. With --kernels the build ends when
# our kernels are compiled. Compute capability: CUDA_COMPUTE_CAP, 90 (Hopper) without it.
set -eu
cd "$(dirname "$0")/.."
root=$(pwd)/target/cuda-toolkit
packages=$root/packages
lib=$root/lib
export CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-90}"
only_kernels=no
if [ "${1:-}" = --kernels ]; then only_kernels=yes && shift; fi

# 1. The toolkit, at versions that fit each other: CUDA 13.0 and cuDNN 9.
if [ ! -e "$root/complete" ]; then
    rm -rf "$root"
    mkdir -p "$packages"
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$packages" \
        nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 \
        nvidia-cuda-nvrtc==13.0.88 nvidia-cublas==13.0.2.14 nvidia-curand==10.4.0.35 nvidia-cuda-cccl==13.0.85 \
        nvidia-cudnn-cu13==9.21.1.3
    # The wheels hold versioned libraries alone; the linker asks for unversioned ones. All in one folder.
    mkdir -p "$lib"
    for library in "$packages"/nvidia/cu13/lib/*.so* "$packages"/nvidia/cudnn/lib/*.so*; do
        name=$(basename "$library")
        ln -sf "$library" "$lib/$name"
        ln -sf "$library" "$lib/${name%%.so*}.so"
    done
    touch "$root/complete"
fi
toolkit=$packages/nvidia/cu13

# Our own kernels are compiled on the machine with the GPU; that they can be is known before.
LD_LIBRARY_PATH="$lib" python3 scripts/cuda_kernels.py "sm_$CUDA_COMPUTE_CAP"
if [ "$only_kernels" = yes ]; then exit 0; fi

# 2. What stands in for what is not needed. A library in the driver's place while linking: the driver itself comes with the
# GPU. And a compiler that leaves out candle's kernels for quantised weights, of which this program calls none: they are
# eight of twelve CPU minutes.
stub=$root/stub
nvcc=$toolkit/bin/nvcc-without-quantised
if [ ! -e "$nvcc" ]; then
    mkdir -p "$stub"
    cargo metadata --format-version 1 --locked --features stages/cuda | python3 -c '
import json, pathlib, re, sys
packages = {p["name"]: pathlib.Path(p["manifest_path"]).parent for p in json.load(sys.stdin)["packages"]}
stub = pathlib.Path(sys.argv[1])
def names(package, path, pattern):
    return sorted(set(re.findall(pattern, (packages[package] / path).read_text())))
driver = names("cudarc", "src/driver/sys/mod.rs", r"\bfn (cu[A-Z]\w*)\(")
(stub / "cuda.c").write_text("".join(f"int {n}(void) {{ return 999; }}\n" for n in driver))
quantised = names("candle-kernels", "src/ffi.rs", r"\bfn (\w+)\(")
calls = "".join(f"void {n}(void) {{ abort(); }}\n" for n in quantised)
(stub / "quantised.c").write_text("#include <stdlib.h>\n" + calls)
' "$stub"
    cc -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$stub/libcuda.so.1" "$stub/cuda.c"
    ln -sf libcuda.so.1 "$stub/libcuda.so"
    cc -c -fPIC -ffunction-sections -o "$stub/quantised.o" "$stub/quantised.c"
    cc -c -fPIC -x c -o "$stub/empty.o" /dev/null
    cat > "$nvcc" <<END
#!/bin/sh
object=
for word; do
    [ "\${before:-}" = -o ] && object=\$word
    before=\$word
done
case " \$* " in
*" -c "*moe/moe_gguf.cu*) exec cp "$stub/quantised.o" "\$object" ;;
*" -c "*/mmq_gguf/* | *" -c "*mmvq_gguf.cu* | *" -c "*moe/moe_*) exec cp "$stub/empty.o" "\$object" ;;
*) exec "$toolkit/bin/nvcc" "\$@" ;;
esac
END
    chmod +x "$nvcc"
fi

# 3. The build. Nothing of the place may enter the program's identity, so the libraries are named by LIBRARY_PATH and
# not by RUSTFLAGS.
export NVCC="$nvcc" CUDA_HOME="$toolkit" CUDA_PATH="$toolkit" CUDA_ROOT="$toolkit"
export PATH="$toolkit/bin:$PATH" LIBRARY_PATH="$lib:$stub" CUDARC_CUDA_VERSION=13000
cargo build --release --locked -p stages --features cuda --target-dir target/cuda "$@"

# 4. What came out.
program=target/cuda/release/stages
strip -o "$program.stripped" "$program"
mv "$program.stripped" "$program"
size=$(wc -c < "$program")
if [ "$size" -ge 64000000 ]; then
    echo "$program: $size bytes: should be below 64 MB" >&2
    exit 1
fi
echo "$program: $size bytes, for compute capability $CUDA_COMPUTE_CAP"
echo "needs on the loader path of the machine with the GPU (LD_LIBRARY_PATH):"
readelf -d "$program" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/    \1/p'
echo "libcuda.so.1 belongs to the driver; CUDA 13 and cuDNN 9 are those of a CUDA 13 installation, of the wheels named"
echo "here, or of a PyTorch for CUDA 13: all but the driver's are in $lib"
