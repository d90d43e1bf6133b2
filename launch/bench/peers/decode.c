/* Peer of decoding: one stream, matrix-vector products in plain C.
 *
 *   cc -Ofast -march=native -fopenmp decode.c -o decode -lm
 *   ./decode N_EMBD N_HEAD N_LAYER BLOCK VOCAB THREADS ROUNDS
 *
 * Random weights; every round decodes BLOCK tokens from an empty cache, each
 * sampled at temperature 1, and prints its seconds.
 */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t rng = 0x9E3779B97F4A7C15ull;

static float uniform(void) {
  rng ^= rng << 13, rng ^= rng >> 7, rng ^= rng << 17;
  return (rng >> 40) / 16777216.0f;
}

static float *weights(size_t n, float std) {
  float *w = aligned_alloc(64, (n * 4 + 63) / 64 * 64);
  for (size_t i = 0; i < n; i++) w[i] = std * 1.7320508f * (2 * uniform() - 1);
  return w;
}

/* y[rows] = W[rows][cols] x[cols] */
static void matvec(float *restrict y, const float *restrict W,
                   const float *restrict x, int rows, int cols) {
#pragma omp parallel for schedule(static)
  for (int r = 0; r < rows; r++) {
    float sum = 0;
    const float *w = W + (size_t)r * cols;
    for (int c = 0; c < cols; c++) sum += w[c] * x[c];
    y[r] = sum;
  }
}

static void rms_norm(float *y, const float *x, int n) {
  float sum = 0;
  for (int i = 0; i < n; i++) sum += x[i] * x[i];
  float scale = 1 / sqrtf(sum / n + 1e-5f);
  for (int i = 0; i < n; i++) y[i] = x[i] * scale;
}

static void softmax(float *x, int n) {
  float max = x[0], sum = 0;
  for (int i = 1; i < n; i++) max = x[i] > max ? x[i] : max;
  for (int i = 0; i < n; i++) sum += x[i] = expf(x[i] - max);
  for (int i = 0; i < n; i++) x[i] /= sum;
}

int main(int argc, char **argv) {
  if (argc != 8) return fprintf(stderr, "seven numbers are needed\n"), 2;
  int D = atoi(argv[1]), H = atoi(argv[2]), N = atoi(argv[3]);
  int T = atoi(argv[4]), V = atoi(argv[5]), K = D / H, F = 4 * D;
  int rounds = atoi(argv[7]);
  omp_set_num_threads(atoi(argv[6]));
  float *wte = weights((size_t)V * D, .02f), *wpe = weights((size_t)T * D, .01f);
  float *head = weights((size_t)V * D, .02f);
  float **wqkv = malloc(N * sizeof *wqkv), **wo = malloc(N * sizeof *wo);
  float **fc1 = malloc(N * sizeof *fc1), **fc2 = malloc(N * sizeof *fc2);
  float **k_cache = malloc(N * sizeof *k_cache);
  float **v_cache = malloc(N * sizeof *v_cache);
  for (int l = 0; l < N; l++) {
    wqkv[l] = weights((size_t)3 * D * D, .02f);
    wo[l] = weights((size_t)D * D, .02f);
    fc1[l] = weights((size_t)F * D, .02f), fc2[l] = weights((size_t)D * F, .02f);
    k_cache[l] = weights((size_t)T * D, 0), v_cache[l] = weights((size_t)T * D, 0);
  }
  float *x = weights(D, 0), *h = weights(D, 0), *qkv = weights(3 * D, 0);
  float *att = weights(D, 0), *f = weights(F, 0), *logits = weights(V, 0);
  float *scores = weights((size_t)H * T, 0), root = 1 / sqrtf(K);
  for (int round = 0; round < rounds; round++) {
    double start = omp_get_wtime();
    int token = 0;
    for (int t = 0; t < T; t++) {
      for (int i = 0; i < D; i++) x[i] = wte[token * D + i] + wpe[t * D + i];
      for (int l = 0; l < N; l++) {
        rms_norm(h, x, D);
        matvec(qkv, wqkv[l], h, 3 * D, D);
        memcpy(k_cache[l] + (size_t)t * D, qkv + D, D * sizeof(float));
        memcpy(v_cache[l] + (size_t)t * D, qkv + 2 * D, D * sizeof(float));
#pragma omp parallel for schedule(static)
        for (int a = 0; a < H; a++) {
          float *s = scores + (size_t)a * T, *out = att + a * K;
          for (int j = 0; j <= t; j++) {
            const float *k = k_cache[l] + (size_t)j * D + a * K;
            float sum = 0;
            for (int i = 0; i < K; i++) sum += qkv[a * K + i] * k[i];
            s[j] = sum * root;
          }
          softmax(s, t + 1);
          memset(out, 0, K * sizeof(float));
          for (int j = 0; j <= t; j++) {
            const float *v = v_cache[l] + (size_t)j * D + a * K;
            for (int i = 0; i < K; i++) out[i] += s[j] * v[i];
          }
        }
        matvec(h, wo[l], att, D, D);
        for (int i = 0; i < D; i++) x[i] += h[i];
        rms_norm(h, x, D);
        matvec(f, fc1[l], h, F, D);
        for (int i = 0; i < F; i++) f[i] = f[i] > 0 ? f[i] * f[i] : 0;
        matvec(h, fc2[l], f, D, F);
        for (int i = 0; i < D; i++) x[i] += h[i];
      }
      matvec(logits, head, x, V, D);
      softmax(logits, V);
      float u = uniform(), sum = 0;
      for (token = 0; token < V - 1; token++)
        if ((sum += logits[token]) > u) break;
    }
    printf("%.9f\n", omp_get_wtime() - start);
    fflush(stdout);
  }
  return 0;
}
