// Kernels of optimisers, on float32 whatever the activations are. `scale` is what clipping multiplies gradients by, or 0
// for none.

// Sums of squares, one a block. p: x float, parts. n: count.
BLOCK_KERNEL(square_sums) {
    SHARED float s[THREADS];
    const float *x = (const float *)a.p[0];
    float sum = 0;
    EACH(i, a.n[0]) sum += x[i] * x[i];
    sum = block_sum(sum, s);
    if (threadIdx.x == 0) ((float *)a.p[1])[blockIdx.x] = sum;
}

// One block: min(1, most / (norm + 1e-6)). p: parts, scale. n: parts. f: most.
BLOCK_KERNEL(clip) {
    SHARED float s[THREADS];
    const float *parts = (const float *)a.p[0];
    float sum = 0;
    ALONG(i, a.n[0]) sum += parts[i];
    sum = block_sum(sum, s);
    if (threadIdx.x == 0) {
        float scale = a.f[0] / (sqrtf(sum) + 1e-6f);
        *(float *)a.p[1] = scale < 1 ? scale : 1;
    }
}

// p: parameter, gradient, momentum or 0, scale or 0. n: count, nesterov. f: rate, momentum, decay.
KERNEL(sgd) {
    float *value = (float *)a.p[0], *buffer = (float *)a.p[2];
    const float *gradient = (const float *)a.p[1], *scale = (const float *)a.p[3];
    EACH(i, a.n[0]) {
        float g = gradient[i] * (scale ? *scale : 1) + a.f[2] * value[i];
        if (buffer) {
            float b = a.f[1] * buffer[i] + g;
            buffer[i] = b;
            g = a.n[1] ? g + a.f[1] * b : b;
        }
        value[i] -= a.f[0] * g;
    }
}

// p: parameter, gradient, first moment, second moment, scale or 0. n: count. f: 1 - beta1, beta2, 1 - beta2,
// 1 - rate decay, rate / correction 1, sqrt(correction 2), epsilon.
KERNEL(adamw) {
    float *value = (float *)a.p[0], *first = (float *)a.p[2], *second = (float *)a.p[3];
    const float *gradient = (const float *)a.p[1], *scale = (const float *)a.p[4];
    EACH(i, a.n[0]) {
        float g = gradient[i] * (scale ? *scale : 1);
        float m = first[i] + (g - first[i]) * a.f[0];
        float v = second[i] * a.f[1] + g * g * a.f[2];
        first[i] = m;
        second[i] = v;
        value[i] = value[i] * a.f[3] - a.f[4] * (m / (sqrtf(v) / a.f[5] + a.f[6]));
    }
}
