/* Llama inference in one file of plain C, in the manner of karpathy/llama2.c's run.c and, with -DINT8, runq.c (MIT, Copyright (c) 2023 Andrej):
   the same loops, OpenMP over the rows of a matrix and over heads, and the compiler's own vectorisation. It measures generation only: no text, no sampling but argmax.

   cc -Ofast -march=native -fopenmp [-DINT8] llama2c.c -lm -o run;   ./run model.bin 64   ->   tokens a second
   model.bin (llama2c.py writes it): int32 dim, hidden, layers, heads, kv heads, vocabulary, positions; then per matrix float32 [rows, columns], or with
   INT8 int8 [rows, columns] and float32 scales, one for GS columns of a row: embedding, per layer q k v o gate down up, output; then the gains. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#define GS 32

typedef struct { int rows, cols; int8_t *q; float *s; float *f; } Matrix;
static int dim, hidden, layers, heads, kv_heads, vocab, positions;

static void *take(FILE *file, size_t bytes) {
    void *p = malloc(bytes);
    if (!p || fread(p, 1, bytes, file) != bytes) { fprintf(stderr, "model file cut short, or no memory\n"); exit(1); }
    return p;
}

static Matrix matrix(FILE *file, int rows, int cols) {
    Matrix m = { rows, cols, 0, 0, 0 };
    size_t n = (size_t)rows * cols;
#ifdef INT8
    m.q = take(file, n); m.s = take(file, n / GS * 4);
#else
    m.f = take(file, n * 4);
#endif
    return m;
}

static void rmsnorm(float *o, const float *x, const float *weight, int size) {
    float ss = 0.0f;
    for (int j = 0; j < size; j++) ss += x[j] * x[j];
    ss = 1.0f / sqrtf(ss / size + 1e-5f);
    for (int j = 0; j < size; j++) o[j] = weight[j] * (ss * x[j]);
}

static void softmax(float *x, int size) {
    float max = x[0], sum = 0.0f;
    for (int i = 1; i < size; i++) if (x[i] > max) max = x[i];
    for (int i = 0; i < size; i++) { x[i] = expf(x[i] - max); sum += x[i]; }
    for (int i = 0; i < size; i++) x[i] /= sum;
}

static int8_t *xq; static float *xs;

static void quantize(const float *x, int n) {
#ifdef INT8
    for (int g = 0; g < n / GS; g++) {
        float wmax = 0.0f;
        for (int i = 0; i < GS; i++) { float v = fabsf(x[g * GS + i]); if (v > wmax) wmax = v; }
        float scale = wmax / 127.0f;
        xs[g] = scale;
        for (int i = 0; i < GS; i++) xq[g * GS + i] = scale ? (int8_t)roundf(x[g * GS + i] / scale) : 0;
    }
#endif
}

static void matmul(float *out, const float *x, Matrix m) { /* INT8: of the vector quantised last */
    int i;
    #pragma omp parallel for private(i)
    for (i = 0; i < m.rows; i++) {
        float val = 0.0f;
#ifdef INT8
        const int8_t *w = m.q + (size_t)i * m.cols; const float *s = m.s + (size_t)i * (m.cols / GS);
        for (int j = 0; j < m.cols; j += GS) {
            int32_t ival = 0;
            for (int k = 0; k < GS; k++) ival += (int32_t)xq[j + k] * (int32_t)w[j + k];
            val += (float)ival * s[j / GS] * xs[j / GS];
        }
#else
        const float *w = m.f + (size_t)i * m.cols;
        for (int j = 0; j < m.cols; j++) val += w[j] * x[j];
#endif
        out[i] = val;
    }
}

int main(int argc, char **argv) {
    FILE *file = argc > 2 ? fopen(argv[1], "rb") : 0;
    if (!file) { fprintf(stderr, "usage: run model.bin tokens\n"); return 1; }
    int *c = take(file, 28), steps = atoi(argv[2]);
    dim = c[0]; hidden = c[1]; layers = c[2]; heads = c[3]; kv_heads = c[4]; vocab = c[5]; positions = c[6];
    int hs = dim / heads, kv_dim = kv_heads * hs, group = heads / kv_heads;
    if (steps > positions) steps = positions;
    Matrix embedding = matrix(file, vocab, dim), (*w)[7] = malloc(sizeof(Matrix[7]) * layers);
    for (int l = 0; l < layers; l++) {
        int shape[7][2] = { {dim, dim}, {kv_dim, dim}, {kv_dim, dim}, {dim, dim}, {hidden, dim}, {dim, hidden}, {hidden, dim} };
        for (int i = 0; i < 7; i++) w[l][i] = matrix(file, shape[i][0], shape[i][1]);
    }
    Matrix output = matrix(file, vocab, dim);
    float *gains = take(file, (size_t)(2 * layers + 1) * dim * 4);
    float *x = calloc(dim, 4), *xb = calloc(dim, 4), *xb2 = calloc(dim, 4), *hb = calloc(hidden, 4), *hb2 = calloc(hidden, 4), *q = calloc(dim, 4);
    float *att = calloc((size_t)heads * positions, 4), *logits = calloc(vocab, 4);
    float *keys = calloc((size_t)layers * positions * kv_dim, 4), *values = calloc((size_t)layers * positions * kv_dim, 4);
    xq = calloc(hidden > dim ? hidden : dim, 1); xs = calloc(hidden > dim ? hidden : dim, 4);
    int token = 1; struct timespec a, b;
    for (int pos = 0; pos < steps; pos++) {
        if (pos == 1) clock_gettime(CLOCK_MONOTONIC, &a); /* as run.c: the first step warms up */
        for (int i = 0; i < dim; i++)
#ifdef INT8
            x[i] = embedding.q[(size_t)token * dim + i] * embedding.s[((size_t)token * dim + i) / GS];
#else
            x[i] = embedding.f[(size_t)token * dim + i];
#endif
        for (int l = 0; l < layers; l++) {
            float *k = keys + ((size_t)l * positions + pos) * kv_dim, *v = values + ((size_t)l * positions + pos) * kv_dim;
            rmsnorm(xb, x, gains + (size_t)2 * l * dim, dim);
            quantize(xb, dim);
            matmul(q, xb, w[l][0]); matmul(k, xb, w[l][1]); matmul(v, xb, w[l][2]);
            for (int i = 0; i < dim; i += 2) {
                float freq = 1.0f / powf(10000.0f, (i % hs) / (float)hs), fcr = cosf(pos * freq), fci = sinf(pos * freq);
                for (int t = 0; t < (i < kv_dim ? 2 : 1); t++) {
                    float *vec = t == 0 ? q : k, v0 = vec[i], v1 = vec[i + 1];
                    vec[i] = v0 * fcr - v1 * fci; vec[i + 1] = v0 * fci + v1 * fcr;
                }
            }
            int h;
            #pragma omp parallel for private(h)
            for (h = 0; h < heads; h++) {
                float *qh = q + h * hs, *ah = att + (size_t)h * positions, *oh = xb + h * hs;
                for (int t = 0; t <= pos; t++) {
                    float *kt = keys + ((size_t)l * positions + t) * kv_dim + (h / group) * hs, score = 0.0f;
                    for (int i = 0; i < hs; i++) score += qh[i] * kt[i];
                    ah[t] = score / sqrtf(hs);
                }
                softmax(ah, pos + 1);
                memset(oh, 0, hs * sizeof(float));
                for (int t = 0; t <= pos; t++) {
                    float *vt = values + ((size_t)l * positions + t) * kv_dim + (h / group) * hs, p = ah[t];
                    for (int i = 0; i < hs; i++) oh[i] += p * vt[i];
                }
            }
            quantize(xb, dim);
            matmul(xb2, xb, w[l][3]);
            for (int i = 0; i < dim; i++) x[i] += xb2[i];
            rmsnorm(xb, x, gains + (size_t)(2 * l + 1) * dim, dim);
            quantize(xb, dim);
            matmul(hb, xb, w[l][4]); matmul(hb2, xb, w[l][6]);
            for (int i = 0; i < hidden; i++) hb[i] = hb[i] * (1.0f / (1.0f + expf(-hb[i]))) * hb2[i];
            quantize(hb, hidden);
            matmul(xb, hb, w[l][5]);
            for (int i = 0; i < dim; i++) x[i] += xb[i];
        }
        rmsnorm(x, x, gains + (size_t)2 * layers * dim, dim);
        quantize(x, dim);
        matmul(logits, x, output);
        token = 0;
        for (int i = 1; i < vocab; i++) if (logits[i] > logits[token]) token = i;
    }
    clock_gettime(CLOCK_MONOTONIC, &b);
    printf("%f\n", (steps - 1) / (b.tv_sec - a.tv_sec + 1e-9 * (b.tv_nsec - a.tv_nsec)));
    return 0;
}
