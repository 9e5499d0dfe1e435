// Kernels of convolutional networks: images [example][row][column][channel], matrices [row = pixel][column = channel].

// p: weights OIHW float -> O(HW)I real. n: outputs, inputs, taps.
KERNEL(pack_weight) {
    const float *from = (const float *)a.p[0];
    real *to = (real *)a.p[1];
    unsigned inputs = (unsigned)a.n[1], taps = (unsigned)a.n[2];
    EACH(i, a.n[0] * a.n[1] * a.n[2]) {
        unsigned in = i % inputs, tap = i / inputs % taps, out = i / inputs / taps;
        to[i] = put(from[(out * inputs + in) * taps + tap]);
    }
}

// p: gradient O(HW)I real -> OIHW float. n: outputs, inputs, taps.
KERNEL(unpack_gradient) {
    const real *from = (const real *)a.p[0];
    float *to = (float *)a.p[1];
    unsigned inputs = (unsigned)a.n[1], taps = (unsigned)a.n[2];
    EACH(i, a.n[0] * a.n[1] * a.n[2]) {
        unsigned tap = i % taps, in = i / taps % inputs, out = i / taps / inputs;
        to[i] = get(from[(out * taps + tap) * inputs + in]);
    }
}

// Sums of a channel's distance from its first pixel, and of the distance's square: no digits are lost where the mean is
// far from 0. p: y real -> parts [chunks][2][channels]. n: pixels, channels, lanes, pixels of a chunk.
BLOCK_KERNEL(norm_sums) {
    SHARED float s[THREADS];
    const real *y = (const real *)a.p[0];
    float *parts = (float *)a.p[1];
    unsigned channels = (unsigned)a.n[1];
    Tile t = tile(a.n[0], a.n[1], a.n[2], a.n[3]);
    float pivot = t.column < channels ? get(y[t.column]) : 0, sum = 0, squares = 0;
    for (unsigned r = t.first; r < t.end; r += t.step) {
        float v = get(y[r * channels + t.column]) - pivot;
        sum += v;
        squares += v * v;
    }
    sum = tile_sum(sum, s, a.n[2]);
    squares = tile_sum(squares, s, a.n[2]);
    if (threadIdx.x < (unsigned)a.n[2] && t.column < channels) {
        parts[t.chunk * 2 * channels + t.column] = sum;
        parts[(t.chunk * 2 + 1) * channels + t.column] = squares;
    }
}

// A block a channel: mean and 1 / deviation of the batch, and the running statistics moved. p: parts, y, mean, inverse,
// running mean, running variance. n: chunks, channels, pixels. f: epsilon, momentum.
BLOCK_KERNEL(norm_finish) {
    SHARED float s[THREADS];
    const float *parts = (const float *)a.p[0];
    float *mean = (float *)a.p[2], *inverse = (float *)a.p[3];
    float *running_mean = (float *)a.p[4], *running_variance = (float *)a.p[5];
    unsigned channels = (unsigned)a.n[1], c = blockIdx.x;
    float sum = 0, squares = 0;
    ALONG(k, a.n[0]) {
        sum += parts[k * 2 * channels + c];
        squares += parts[(k * 2 + 1) * channels + c];
    }
    sum = block_sum(sum, s);
    squares = block_sum(squares, s);
    if (threadIdx.x == 0) {
        float count = (float)a.n[2], distance = sum / count;
        float variance = squares / count - distance * distance;
        if (variance < 0) variance = 0;
        mean[c] = get(((const real *)a.p[1])[c]) + distance;
        inverse[c] = 1.0f / sqrtf(variance + a.f[0]);
        float unbiased = count > 1 ? variance * (count / (count - 1)) : variance;
        running_mean[c] += a.f[1] * (mean[c] - running_mean[c]);
        running_variance[c] += a.f[1] * (unbiased - running_variance[c]);
    }
}

// p: running variance -> inverse. n: channels. f: epsilon.
KERNEL(norm_running) {
    const float *variance = (const float *)a.p[0];
    float *inverse = (float *)a.p[1];
    EACH(c, a.n[0]) inverse[c] = 1.0f / sqrtf(variance[c] + a.f[0]);
}

// out = relu?((y - mean) inverse gamma + beta [+ residual]). p: y, mean, inverse, gamma, beta, residual or 0, out.
// n: count, channels, relu.
KERNEL(norm_apply) {
    const real *y = (const real *)a.p[0], *residual = (const real *)a.p[5];
    const float *mean = (const float *)a.p[1], *inverse = (const float *)a.p[2];
    const float *gamma = (const float *)a.p[3], *beta = (const float *)a.p[4];
    real *out = (real *)a.p[6];
    unsigned channels = (unsigned)a.n[1];
    EACH(i, a.n[0]) {
        unsigned c = i % channels;
        float v = (get(y[i]) - mean[c]) * (inverse[c] * gamma[c]) + beta[c];
        if (residual) v += get(residual[i]);
        if (a.n[2] && !(v > 0)) v = v != v ? v : 0;
        out[i] = put(v);
    }
}

// dz becomes 0 where the result was not positive; sums of it and of it times (y - mean). p: dz, out or 0, y, mean,
// parts [chunks][2][channels]. n: pixels, channels, lanes, pixels of a chunk.
BLOCK_KERNEL(norm_back_sums) {
    SHARED float s[THREADS];
    real *dz = (real *)a.p[0];
    const real *out = (const real *)a.p[1], *y = (const real *)a.p[2];
    const float *mean = (const float *)a.p[3];
    float *parts = (float *)a.p[4];
    unsigned channels = (unsigned)a.n[1];
    Tile t = tile(a.n[0], a.n[1], a.n[2], a.n[3]);
    float middle = t.column < channels ? mean[t.column] : 0, plain = 0, weighted = 0;
    for (unsigned r = t.first; r < t.end; r += t.step) {
        unsigned i = r * channels + t.column;
        float d = get(dz[i]);
        if (out && !(get(out[i]) > 0)) {
            d = 0;
            dz[i] = put(d);
        }
        plain += d;
        weighted += d * (get(y[i]) - middle);
    }
    plain = tile_sum(plain, s, a.n[2]);
    weighted = tile_sum(weighted, s, a.n[2]);
    if (threadIdx.x < (unsigned)a.n[2] && t.column < channels) {
        parts[t.chunk * 2 * channels + t.column] = plain;
        parts[(t.chunk * 2 + 1) * channels + t.column] = weighted;
    }
}

// A block a channel: the gradients of gamma and beta, and dy = a dz + b (y - mean) + c. p: parts, gamma, inverse,
// dgamma, dbeta, coefficients [3][channels]. n: chunks, channels, pixels, whether the statistics are the batch's.
BLOCK_KERNEL(norm_back_finish) {
    SHARED float s[THREADS];
    const float *parts = (const float *)a.p[0], *gamma = (const float *)a.p[1], *inverse = (const float *)a.p[2];
    float *dgamma = (float *)a.p[3], *dbeta = (float *)a.p[4], *to = (float *)a.p[5];
    unsigned channels = (unsigned)a.n[1], c = blockIdx.x;
    float plain = 0, weighted = 0;
    ALONG(k, a.n[0]) {
        plain += parts[k * 2 * channels + c];
        weighted += parts[(k * 2 + 1) * channels + c];
    }
    plain = block_sum(plain, s);
    weighted = block_sum(weighted, s);
    if (threadIdx.x == 0) {
        float count = (float)a.n[2], scale = gamma[c] * inverse[c];
        dgamma[c] = weighted * inverse[c];
        dbeta[c] = plain;
        to[c] = scale;
        to[channels + c] = a.n[3] ? -scale * inverse[c] * inverse[c] * weighted / count : 0;
        to[2 * channels + c] = a.n[3] ? -scale * plain / count : 0;
    }
}

// p: dz, y, mean, coefficients, dy. n: count, channels.
KERNEL(norm_back) {
    const real *dz = (const real *)a.p[0], *y = (const real *)a.p[1];
    const float *mean = (const float *)a.p[2], *by = (const float *)a.p[3];
    real *dy = (real *)a.p[4];
    unsigned channels = (unsigned)a.n[1];
    EACH(i, a.n[0]) {
        unsigned c = i % channels;
        dy[i] = put(by[c] * get(dz[i]) + by[channels + c] * (get(y[i]) - mean[c]) + by[2 * channels + c]);
    }
}

// Every second pixel, zero channels before and after. p: x, out. n: count, channels, height, width of out; channels,
// height, width of x; zero channels before.
KERNEL(shortcut) {
    const real *x = (const real *)a.p[0];
    real *out = (real *)a.p[1];
    unsigned channels = (unsigned)a.n[1], h = (unsigned)a.n[2], w = (unsigned)a.n[3];
    unsigned inputs = (unsigned)a.n[4], height = (unsigned)a.n[5], width = (unsigned)a.n[6];
    unsigned before = (unsigned)a.n[7];
    EACH(i, a.n[0]) {
        unsigned c = i % channels, column = i / channels % w, row = i / channels / w % h, n = i / channels / w / h;
        int inside = c >= before && c - before < inputs;
        out[i] = inside ? x[((n * height + 2 * row) * width + 2 * column) * inputs + c - before] : put(0);
    }
}

// p: dx, dz. n: count of dx; as above; whether dx is added to. An odd pixel has no gradient.
KERNEL(shortcut_back) {
    real *dx = (real *)a.p[0];
    const real *dz = (const real *)a.p[1];
    unsigned channels = (unsigned)a.n[1], h = (unsigned)a.n[2], w = (unsigned)a.n[3];
    unsigned inputs = (unsigned)a.n[4], height = (unsigned)a.n[5], width = (unsigned)a.n[6];
    unsigned before = (unsigned)a.n[7];
    EACH(i, a.n[0]) {
        unsigned c = i % inputs, column = i / inputs % width, row = i / inputs / width % height;
        unsigned n = i / inputs / width / height;
        float d = 0;
        if (row % 2 == 0 && column % 2 == 0) d = get(dz[((n * h + row / 2) * w + column / 2) * channels + c + before]);
        dx[i] = put(a.n[8] ? get(dx[i]) + d : d);
    }
}

// 3x3, stride 2, padding 1; the first of equal values. p: x, out, choice (bytes 0 to 8). n: count, channels, height,
// width of out; height, width of x.
KERNEL(max_pool) {
    const real *x = (const real *)a.p[0];
    real *out = (real *)a.p[1];
    unsigned char *choice = (unsigned char *)a.p[2];
    unsigned channels = (unsigned)a.n[1], h = (unsigned)a.n[2], w = (unsigned)a.n[3];
    int height = (int)a.n[4], width = (int)a.n[5];
    EACH(i, a.n[0]) {
        unsigned c = i % channels, n = i / channels / w / h;
        int left = 2 * (int)(i / channels % w) - 1, top = 2 * (int)(i / channels / w % h) - 1;
        float best = 0;
        int which = -1;
        for (int k = 0; k < 9; k++) {
            int row = top + k / 3, column = left + k % 3;
            if (row < 0 || row >= height || column < 0 || column >= width) continue;
            float v = get(x[((n * height + row) * width + column) * channels + c]);
            if (which < 0 || v > best) {
                best = v;
                which = k;
            }
        }
        out[i] = put(best);
        choice[i] = (unsigned char)which;
    }
}

// Each pixel gathers from the windows that chose it. p: dx, dz, choice. n: count of dx; as above; whether dx is added to.
KERNEL(max_pool_back) {
    real *dx = (real *)a.p[0];
    const real *dz = (const real *)a.p[1];
    const unsigned char *choice = (const unsigned char *)a.p[2];
    unsigned channels = (unsigned)a.n[1];
    int h = (int)a.n[2], w = (int)a.n[3], height = (int)a.n[4], width = (int)a.n[5];
    EACH(i, a.n[0]) {
        unsigned c = i % channels, n = i / channels / width / height;
        int column = (int)(i / channels % width), row = (int)(i / channels / width % height);
        float d = a.n[6] ? get(dx[i]) : 0;
        for (int r = row / 2; r <= (row + 1) / 2 && r < h; r++)
            for (int q = column / 2; q <= (column + 1) / 2 && q < w; q++) {
                unsigned at = ((n * h + r) * w + q) * channels + c;
                if (choice[at] == (row - 2 * r + 1) * 3 + column - 2 * q + 1) d += get(dz[at]);
            }
        dx[i] = put(d);
    }
}

// p: x [n][pixels][channels] -> means [n][channels] float. n: count of means, channels, pixels.
KERNEL(mean_pixels) {
    const real *x = (const real *)a.p[0];
    float *out = (float *)a.p[1];
    unsigned channels = (unsigned)a.n[1], pixels = (unsigned)a.n[2];
    EACH(i, a.n[0]) {
        const real *from = x + i / channels * pixels * channels + i % channels;
        float sum = 0;
        for (unsigned p = 0; p < pixels; p++) sum += get(from[p * channels]);
        out[i] = sum / (float)pixels;
    }
}

// The gradient of the mean. p: dmeans float, dx. n: count of dx, channels, pixels.
KERNEL(spread) {
    const float *from = (const float *)a.p[0];
    real *dx = (real *)a.p[1];
    unsigned channels = (unsigned)a.n[1], pixels = (unsigned)a.n[2];
    EACH(i, a.n[0]) dx[i] = put(from[i / channels / pixels * channels + i % channels] / (float)pixels);
}
