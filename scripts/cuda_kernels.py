"""Compiles the kernels by NVRTC for the given architectures (sm_90 without any): needs no GPU and no driver.

    LD_LIBRARY_PATH=target/cuda-toolkit/lib python3 scripts/cuda_kernels.py [sm_80 sm_90 ...]"""


import ctypes
import pathlib
import sys

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "stages/src/nn/gpu"
FILES = ["common.cu", "images.cu", "texts.cu", "steps.cu"]


def compile_kernels(nvrtc, source, options):
    program = ctypes.c_void_p()
    check(nvrtc, nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None))
    array = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
    failed = nvrtc.nvrtcCompileProgram(program, len(options), array)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if failed:
        sys.exit(f"{options}: {log.value.decode()}")
    check(nvrtc, nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)))
    return size.value, log.value.decode()


def check(nvrtc, status):
    if status:
        nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        sys.exit(nvrtc.nvrtcGetErrorString(status).decode())


def main():
    nvrtc = ctypes.CDLL("libnvrtc.so.13")
    source = "".join((FOLDER / name).read_text() for name in FILES)
    for arch in sys.argv[1:] or ["sm_90"]:
        for name, define in [("float32", ""), ("bf16", "#define BF16\n")]:
            # As stages/src/nn/cuda.rs compiles them.
            size, log = compile_kernels(nvrtc, define + source, [f"--gpu-architecture={arch}", "--std=c++17"])
            print(f"{arch} {name}: {size} bytes{chr(10) + log if log.strip() else ''}")


main()
