// What stands in for CUDA when the kernels are compiled as C: one thread of the processor plays all threads of a block
// in turn, switching at every __syncthreads.
#define EMULATED
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define DEVICE static inline
#define SHARED static
#define KERNEL(name) \
    const int name##_waits = 0; \
    void name(const Args a)
#define BLOCK_KERNEL(name) \
    const int name##_waits = 1; \
    void name(const Args a)

static struct {
    unsigned x;
} blockIdx, threadIdx, gridDim;

static void __syncthreads(void);

static inline unsigned __float_as_uint(float v) {
    unsigned bits;
    memcpy(&bits, &v, 4);
    return bits;
}

static inline float __uint_as_float(unsigned bits) {
    float v;
    memcpy(&v, &bits, 4);
    return v;
}

KERNELS

#define STACK 32768
static ucontext_t scheduler, threads[THREADS];
static char stacks[THREADS][STACK];
static int done[THREADS];
static void (*kernel)(const Args);
static Args arguments;

static void __syncthreads(void) {
    unsigned self = threadIdx.x;
    swapcontext(&threads[self], &scheduler);
    threadIdx.x = self;
}

static void play(void) {
    kernel(arguments);
    done[threadIdx.x] = 1;
}

void launch(void (*which)(const Args), int waits, unsigned blocks, const Args *a) {
    kernel = which;
    arguments = *a;
    gridDim.x = blocks;
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) {
        if (!waits) {
            for (threadIdx.x = 0; threadIdx.x < THREADS; threadIdx.x++) which(*a);
            continue;
        }
        for (unsigned t = 0; t < THREADS; t++) {
            getcontext(&threads[t]);
            threads[t].uc_stack.ss_sp = stacks[t];
            threads[t].uc_stack.ss_size = STACK;
            threads[t].uc_link = &scheduler;
            makecontext(&threads[t], play, 0);
            done[t] = 0;
        }
        for (int left = 1; left;) {
            left = 0;
            for (unsigned t = 0; t < THREADS; t++) {
                if (done[t]) continue;
                threadIdx.x = t;
                swapcontext(&scheduler, &threads[t]);
                left |= !done[t];
            }
        }
    }
}
