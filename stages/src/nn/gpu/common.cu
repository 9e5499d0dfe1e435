// What all kernels share. The language is the common part of C and CUDA C++: tests compile the same text for the
// processor (stages/tests/support/emulated.c says what stands in for CUDA there).
//
// Every kernel has the same signature: pointers p, whole numbers n, fractions f. Blocks have THREADS threads, grids one
// dimension. Sums run in an order that depends on shapes alone; nothing is added atomically.
#define THREADS 256

typedef unsigned long long u64;
typedef struct {
    void *p[10];
    long long n[10];
    float f[8];
} Args;

#ifndef EMULATED
#define DEVICE static __device__ __forceinline__
#define SHARED __shared__
// A kernel whose threads work alone, and one whose blocks wait for each other's threads.
#define KERNEL(name) extern "C" __global__ void __launch_bounds__(THREADS) name(const Args a)
#define BLOCK_KERNEL(name) KERNEL(name)
#endif

// The type of activations and of the weights that they meet: float, or the upper half of one.
#ifdef BF16
typedef unsigned short real;
DEVICE float get(real v) { return __uint_as_float((unsigned)v << 16); }
// To nearest, ties to even.
DEVICE real put(float v) {
    unsigned bits = __float_as_uint(v);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (real)0x7fc0;
    return (real)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
#else
typedef float real;
DEVICE float get(real v) { return v; }
DEVICE real put(float v) { return v; }
#endif

// Each element by one thread of the grid.
#define EACH(i, count) \
    for (unsigned i = blockIdx.x * THREADS + threadIdx.x; i < (unsigned)(count); i += gridDim.x * THREADS)
// Each column of a row by one thread of the block.
#define ALONG(j, width) for (unsigned j = threadIdx.x; j < (unsigned)(width); j += THREADS)

// The sum over the block's threads, for all of them.
DEVICE float block_sum(float v, float *s) {
    s[threadIdx.x] = v;
    __syncthreads();
    for (unsigned w = THREADS / 2; w > 0; w /= 2) {
        if (threadIdx.x < w) s[threadIdx.x] += s[threadIdx.x + w];
        __syncthreads();
    }
    v = s[0];
    __syncthreads();
    return v;
}

DEVICE float block_max(float v, float *s) {
    s[threadIdx.x] = v;
    __syncthreads();
    for (unsigned w = THREADS / 2; w > 0; w /= 2) {
        if (threadIdx.x < w && s[threadIdx.x + w] > s[threadIdx.x]) s[threadIdx.x] = s[threadIdx.x + w];
        __syncthreads();
    }
    v = s[0];
    __syncthreads();
    return v;
}

// A block's tile of a matrix whose columns are summed: `lanes` columns side by side, THREADS / lanes rows at a time, of
// one chunk of rows. Grid: groups of columns, then chunks.
typedef struct {
    unsigned column, first, end, step, chunk;
} Tile;

DEVICE Tile tile(long long rows, long long columns, long long lanes, long long per_chunk) {
    Tile t;
    unsigned groups = (unsigned)((columns + lanes - 1) / lanes);
    t.chunk = blockIdx.x / groups;
    t.column = (unsigned)(blockIdx.x % groups * lanes + threadIdx.x % lanes);
    t.first = (unsigned)(t.chunk * per_chunk + threadIdx.x / lanes);
    t.end = (unsigned)((t.chunk + 1) * per_chunk);
    if (t.end > (unsigned)rows) t.end = (unsigned)rows;
    if (t.column >= (unsigned)columns) t.end = 0;
    t.step = (unsigned)(THREADS / lanes);
    return t;
}

// The sum over a tile's rows: valid in the first `lanes` threads.
DEVICE float tile_sum(float v, float *s, long long lanes) {
    s[threadIdx.x] = v;
    __syncthreads();
    for (unsigned w = THREADS / 2; w >= (unsigned)lanes; w /= 2) {
        if (threadIdx.x < w) s[threadIdx.x] += s[threadIdx.x + w];
        __syncthreads();
    }
    v = s[threadIdx.x];
    __syncthreads();
    return v;
}

// Whether dropout keeps element i: a number of 32 bits from SplitMix64 (Steele, Lea and Flood 2014) at place i of the
// sequence that starts at `key`, against a limit.
DEVICE int keeps(u64 key, unsigned i, long long limit) {
    u64 z = key + ((u64)i + 1) * 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    return (long long)(z >> 32) >= limit;
}

// p: float -> real. n: count.
KERNEL(cast) {
    const float *from = (const float *)a.p[0];
    real *to = (real *)a.p[1];
    EACH(i, a.n[0]) to[i] = put(from[i]);
}

// p: to += from, real. n: count.
KERNEL(add) {
    real *to = (real *)a.p[0];
    const real *from = (const real *)a.p[1];
    EACH(i, a.n[0]) to[i] = put(get(to[i]) + get(from[i]));
}

// p: parts [chunks][count] float -> their sums [count]. n: count, chunks.
KERNEL(fold) {
    const float *parts = (const float *)a.p[0];
    float *to = (float *)a.p[1];
    EACH(i, a.n[0]) {
        float sum = 0;
        for (unsigned k = 0; k < (unsigned)a.n[1]; k++) sum += parts[k * (unsigned)a.n[0] + i];
        to[i] = sum;
    }
}

// p: x [rows][columns] real -> parts [chunks][columns]. n: rows, columns, lanes, rows of a chunk.
BLOCK_KERNEL(column_sums) {
    SHARED float s[THREADS];
    const real *x = (const real *)a.p[0];
    float *parts = (float *)a.p[1];
    Tile t = tile(a.n[0], a.n[1], a.n[2], a.n[3]);
    float sum = 0;
    for (unsigned r = t.first; r < t.end; r += t.step) sum += get(x[r * (unsigned)a.n[1] + t.column]);
    sum = tile_sum(sum, s, a.n[2]);
    if (threadIdx.x < (unsigned)a.n[2] && t.column < (unsigned)a.n[1])
        parts[t.chunk * (unsigned)a.n[1] + t.column] = sum;
}
