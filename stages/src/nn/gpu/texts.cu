// Kernels of transformers: matrices [row = token][column], heads as [example][head][token][column].

// Sum of the three embeddings. p: tokens [n][3][length] u32, words, types, positions float, out. n: count, width, length.
KERNEL(embed) {
    const unsigned *tokens = (const unsigned *)a.p[0];
    const float *words = (const float *)a.p[1], *types = (const float *)a.p[2], *positions = (const float *)a.p[3];
    real *out = (real *)a.p[4];
    unsigned width = (unsigned)a.n[1], length = (unsigned)a.n[2];
    EACH(i, a.n[0]) {
        unsigned j = i % width, place = i / width % length, n = i / width / length;
        const unsigned *token = tokens + n * 3 * length + place;
        out[i] = put(words[token[0] * width + j] + types[token[length] * width + j] + positions[place * width + j]);
    }
}

// A block a row: t = dropout(y + bias) + residual, out = norm(t). p: y, bias or 0, residual or 0, gamma, beta, t, out,
// moments [rows][2] (mean, 1 / deviation). n: width, key, limit. f: epsilon, 1 / (1 - p).
BLOCK_KERNEL(norm_rows) {
    SHARED float s[THREADS];
    unsigned width = (unsigned)a.n[0], row = blockIdx.x, at = row * width;
    const real *y = (const real *)a.p[0] + at, *residual = (const real *)a.p[2];
    const float *bias = (const float *)a.p[1], *gamma = (const float *)a.p[3], *beta = (const float *)a.p[4];
    real *t = (real *)a.p[5] + at, *out = (real *)a.p[6] + at;
    float *moments = (float *)a.p[7] + 2 * row;
    float sum = 0;
    ALONG(j, width) {
        float v = get(y[j]);
        if (bias) v += bias[j];
        if (a.n[2]) v = keeps((u64)a.n[1], at + j, a.n[2]) ? v * a.f[1] : 0;
        if (residual) v += get(residual[at + j]);
        t[j] = put(v);
        sum += get(t[j]);
    }
    float mean = block_sum(sum, s) / (float)width, squares = 0;
    ALONG(j, width) squares += (get(t[j]) - mean) * (get(t[j]) - mean);
    float inverse = 1.0f / sqrtf(block_sum(squares, s) / (float)width + a.f[0]);
    ALONG(j, width) out[j] = put((get(t[j]) - mean) * inverse * gamma[j] + beta[j]);
    if (threadIdx.x == 0) {
        moments[0] = mean;
        moments[1] = inverse;
    }
}

// A block a row. p: dout, t, gamma, moments, dt, dy or 0 (dt behind the dropout). n: width, key, limit. f: -, 1 / (1 - p).
BLOCK_KERNEL(norm_rows_back) {
    SHARED float s[THREADS];
    unsigned width = (unsigned)a.n[0], at = blockIdx.x * width;
    const real *dout = (const real *)a.p[0] + at, *t = (const real *)a.p[1] + at;
    const float *gamma = (const float *)a.p[2], *moments = (const float *)a.p[3] + 2 * blockIdx.x;
    real *dt = (real *)a.p[4] + at, *dy = (real *)a.p[5];
    float mean = moments[0], inverse = moments[1], plain = 0, weighted = 0;
    ALONG(j, width) {
        float g = get(dout[j]) * gamma[j];
        plain += g;
        weighted += g * (get(t[j]) - mean) * inverse;
    }
    plain = block_sum(plain, s) / (float)width;
    weighted = block_sum(weighted, s) / (float)width;
    ALONG(j, width) {
        float x = (get(t[j]) - mean) * inverse;
        float d = inverse * (get(dout[j]) * gamma[j] - plain - x * weighted);
        dt[j] = put(d);
        if (dy) dy[at + j] = put(keeps((u64)a.n[1], at + j, a.n[2]) ? d * a.f[1] : 0);
    }
}

// The gradients of gamma and beta. p: dout, t, moments, parts [chunks][2][width]. n: rows, width, lanes, rows of a chunk.
BLOCK_KERNEL(norm_rows_sums) {
    SHARED float s[THREADS];
    const real *dout = (const real *)a.p[0], *t = (const real *)a.p[1];
    const float *moments = (const float *)a.p[2];
    float *parts = (float *)a.p[3];
    unsigned width = (unsigned)a.n[1];
    Tile tl = tile(a.n[0], a.n[1], a.n[2], a.n[3]);
    float weighted = 0, plain = 0;
    for (unsigned r = tl.first; r < tl.end; r += tl.step) {
        unsigned i = r * width + tl.column;
        float d = get(dout[i]);
        plain += d;
        weighted += d * (get(t[i]) - moments[2 * r]) * moments[2 * r + 1];
    }
    weighted = tile_sum(weighted, s, a.n[2]);
    plain = tile_sum(plain, s, a.n[2]);
    if (threadIdx.x < (unsigned)a.n[2] && tl.column < width) {
        parts[tl.chunk * 2 * width + tl.column] = weighted;
        parts[(tl.chunk * 2 + 1) * width + tl.column] = plain;
    }
}

// In place, forward and backward alike. p: x real. n: count, key, limit. f: 1 / (1 - p).
KERNEL(dropout) {
    real *x = (real *)a.p[0];
    EACH(i, a.n[0]) x[i] = put(keeps((u64)a.n[1], i, a.n[2]) ? get(x[i]) * a.f[0] : 0);
}

// Queries, keys and values by head, bias added. p: from [rows][parts * width], bias or 0, to [parts][n][heads][length][d].
// n: count, width, length, heads, parts, count of a part.
KERNEL(split_heads) {
    const real *from = (const real *)a.p[0];
    const float *bias = (const float *)a.p[1];
    real *to = (real *)a.p[2];
    unsigned width = (unsigned)a.n[1], length = (unsigned)a.n[2], heads = (unsigned)a.n[3], d = width / heads;
    unsigned all = width * (unsigned)a.n[4], each = (unsigned)a.n[5];
    EACH(i, a.n[0]) {
        unsigned part = i / each, k = i % each;
        unsigned j = k % d, place = k / d % length, head = k / d / length % heads, n = k / d / length / heads;
        unsigned column = part * width + head * d + j;
        float v = get(from[(n * length + place) * all + column]);
        to[i] = put(bias ? v + bias[column] : v);
    }
}

// The way back. p: from [parts][n][heads][length][d], to [rows][parts * width]. n: as split_heads.
KERNEL(merge_heads) {
    const real *from = (const real *)a.p[0];
    real *to = (real *)a.p[1];
    unsigned width = (unsigned)a.n[1], length = (unsigned)a.n[2], heads = (unsigned)a.n[3], d = width / heads;
    unsigned all = width * (unsigned)a.n[4], each = (unsigned)a.n[5];
    EACH(i, a.n[0]) {
        unsigned column = i % all, row = i / all, part = column / width, head = column % width / d, j = column % d;
        unsigned place = row % length, n = row / length;
        to[i] = from[part * each + ((n * heads + head) * length + place) * d + j];
    }
}

// A block a row of scores, which become probabilities; and these behind the dropout. p: scores, dropped or 0,
// tokens [n][3][length]. n: length, rows of an example (heads * length), key, limit. f: scale, score of padding, 1 / (1 - p).
BLOCK_KERNEL(softmax) {
    SHARED float s[THREADS];
    unsigned length = (unsigned)a.n[0], at = blockIdx.x * length;
    real *x = (real *)a.p[0] + at, *dropped = (real *)a.p[1];
    const unsigned *stands = (const unsigned *)a.p[2] + (blockIdx.x / (unsigned)a.n[1] * 3 + 2) * length;
    float most = -3.4e38f, sum = 0;
    ALONG(j, length) {
        float v = get(x[j]) * a.f[0] + (stands[j] ? 0 : a.f[1]);
        if (v > most) most = v;
    }
    most = block_max(most, s);
    ALONG(j, length) sum += expf(get(x[j]) * a.f[0] + (stands[j] ? 0 : a.f[1]) - most);
    float inverse = 1.0f / block_sum(sum, s);
    ALONG(j, length) {
        float p = expf(get(x[j]) * a.f[0] + (stands[j] ? 0 : a.f[1]) - most) * inverse;
        x[j] = put(p);
        if (dropped) dropped[at + j] = put(keeps((u64)a.n[2], at + j, a.n[3]) ? p * a.f[2] : 0);
    }
}

// A block a row: d (of the dropped probabilities) becomes the scores' gradient. p: d, probabilities. n: length, -, key,
// limit. f: scale, -, 1 / (1 - p).
BLOCK_KERNEL(softmax_back) {
    SHARED float s[THREADS];
    unsigned length = (unsigned)a.n[0], at = blockIdx.x * length;
    real *d = (real *)a.p[0] + at;
    const real *p = (const real *)a.p[1] + at;
    float sum = 0;
    ALONG(j, length) {
        float v = get(d[j]);
        if (a.n[3]) v = keeps((u64)a.n[2], at + j, a.n[3]) ? v * a.f[2] : 0;
        sum += v * get(p[j]);
    }
    sum = block_sum(sum, s);
    ALONG(j, length) {
        float v = get(d[j]);
        if (a.n[3]) v = keeps((u64)a.n[2], at + j, a.n[3]) ? v * a.f[2] : 0;
        d[j] = put(a.f[0] * get(p[j]) * (v - sum));
    }
}

// u += bias, g = u Phi(u). p: u, bias, g. n: count, width.
KERNEL(bias_gelu) {
    real *u = (real *)a.p[0], *g = (real *)a.p[2];
    const float *bias = (const float *)a.p[1];
    EACH(i, a.n[0]) {
        float v = get(u[i]) + bias[i % (unsigned)a.n[1]];
        u[i] = put(v);
        v = get(u[i]);
        g[i] = put(0.5f * v * (1.0f + erff(v * 0.70710678f)));
    }
}

// p: d (of g, becomes that of u), u. n: count.
KERNEL(gelu_back) {
    real *d = (real *)a.p[0];
    const real *u = (const real *)a.p[1];
    EACH(i, a.n[0]) {
        float v = get(u[i]);
        float below = 0.5f * (1.0f + erff(v * 0.70710678f));
        d[i] = put(get(d[i]) * (below + v * 0.39894228f * expf(-0.5f * v * v)));
    }
}

// Each example's first token. p: x [n][length][width], out [n][width]. n: count of out, width, length.
KERNEL(first_rows) {
    const real *x = (const real *)a.p[0];
    real *out = (real *)a.p[1];
    unsigned width = (unsigned)a.n[1];
    EACH(i, a.n[0]) out[i] = x[i / width * width * (unsigned)a.n[2] + i % width];
}

// p: dout [n][width], dx [n][length][width], 0 but for the first tokens. n: count of dx, width, length.
KERNEL(first_rows_back) {
    const real *dout = (const real *)a.p[0];
    real *dx = (real *)a.p[1];
    unsigned width = (unsigned)a.n[1], length = (unsigned)a.n[2];
    EACH(i, a.n[0]) dx[i] = i / width % length ? put(0) : dout[i / width / length * width + i % width];
}

// out = dropout(tanh(y + bias)). p: y, bias, tanh float, out float. n: count, width, key, limit. f: 1 / (1 - p).
KERNEL(pool_rows) {
    const real *y = (const real *)a.p[0];
    const float *bias = (const float *)a.p[1];
    float *kept = (float *)a.p[2], *out = (float *)a.p[3];
    EACH(i, a.n[0]) {
        float v = tanhf(get(y[i]) + bias[i % (unsigned)a.n[1]]);
        kept[i] = v;
        if (a.n[3]) v = keeps((u64)a.n[2], i, a.n[3]) ? v * a.f[0] : 0;
        out[i] = v;
    }
}

// p: dout float, tanh float, dy. n: as above.
KERNEL(pool_rows_back) {
    const float *dout = (const float *)a.p[0], *tanh = (const float *)a.p[1];
    real *dy = (real *)a.p[2];
    EACH(i, a.n[0]) {
        float v = dout[i];
        if (a.n[3]) v = keeps((u64)a.n[2], i, a.n[3]) ? v * a.f[0] : 0;
        dy[i] = put(v * (1.0f - tanh[i] * tanh[i]));
    }
}

// Where the same word stands again: links[row] the next row with it (rows if none), links[rows + row] whether an earlier
// one has it. p: tokens, links. n: rows, length.
KERNEL(same_words) {
    const unsigned *tokens = (const unsigned *)a.p[0];
    unsigned *links = (unsigned *)a.p[1];
    unsigned rows = (unsigned)a.n[0], length = (unsigned)a.n[1];
    EACH(r, rows) {
        unsigned word = tokens[r / length * 3 * length + r % length], next = rows, earlier = 0;
        for (unsigned q = 0; q < rows; q++) {
            int same = tokens[q / length * 3 * length + q % length] == word;
            if (same && q < r) earlier = 1;
            if (same && q > r && next == rows) next = q;
        }
        links[r] = next;
        links[rows + r] = earlier;
    }
}

// A block a row: the first row of a word sums all rows with it, in order. p: dx, tokens, links, to [words][width] float,
// zero before. n: rows, length, width.
KERNEL(word_sums) {
    const real *dx = (const real *)a.p[0];
    const unsigned *tokens = (const unsigned *)a.p[1], *links = (const unsigned *)a.p[2];
    unsigned rows = (unsigned)a.n[0], length = (unsigned)a.n[1], width = (unsigned)a.n[2], row = blockIdx.x;
    if (links[rows + row]) return;
    float *to = (float *)a.p[3] + tokens[row / length * 3 * length + row % length] * width;
    ALONG(j, width) {
        float sum = 0;
        for (unsigned r = row; r < rows; r = links[r]) sum += get(dx[r * width + j]);
        to[j] = sum;
    }
}

// Sums of the rows of each kind, [kinds][width]: tokens' types, or their places. p: dx, tokens, to. n: count, rows, length,
// width, whether by place.
KERNEL(kind_sums) {
    const real *dx = (const real *)a.p[0];
    const unsigned *tokens = (const unsigned *)a.p[1];
    float *to = (float *)a.p[2];
    unsigned rows = (unsigned)a.n[1], length = (unsigned)a.n[2], width = (unsigned)a.n[3];
    EACH(i, a.n[0]) {
        unsigned kind = i / width, j = i % width, step = a.n[4] ? length : 1;
        float sum = 0;
        for (unsigned r = a.n[4] ? (kind < length ? kind : rows) : 0; r < rows; r += step)
            if (a.n[4] || tokens[(r / length * 3 + 1) * length + r % length] == kind) sum += get(dx[r * width + j]);
        to[i] = sum;
    }
}

// p: to float. n: count.
KERNEL(clear) {
    float *to = (float *)a.p[0];
    EACH(i, a.n[0]) to[i] = 0;
}
