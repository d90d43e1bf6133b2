// Causal attention of whole sequences, forward and backward, a block of queries
// at a time (Dao et al. 2022, FlashAttention): no array of L x L numbers.
#pragma once
#include "words.h"

// The tensors of a call, [B][L][H or G][K]; lse: [B][H][L], the log-sum-exp of
// the scores; segments: [B][L] or null. The forward pass writes out and lse;
// the backward one reads them and dout, and writes dq, dk and dv.
struct Attention {
  int B, L, H, G, K;
  const float *q, *k, *v;
  const int* segments;
  float *out, *lse;
  const float* dout;
  float *dq, *dk, *dv;
};

constexpr int QUERIES = 24;  // Of a block; even, for pairs.

INLINE ivec lanes() {
  ivec x;
  for (int i = 0; i < W; i++) x[i] = i;
  return x;
}

// One head of a tensor, in words of E.
template <class E>
struct Side {
  Room<E> along_room, across_room, panels_room;
  const float* x;
  int L, K, row;
  E *wide, *tall, *panels;

  // Row l begins at x[l * row].
  Side& of(const float* from, int length, int width, int stride) {
    x = from, L = length, K = width, row = stride;
    return *this;
  }
  // Words along K: [L][words(K)]. Rows are far apart in memory: the processor
  // would not ask for them in time.
  Side& along_k() {
    int n = words<E>(K);
    wide = along_room.get((size_t)L * n);
    for (int l = 0; l < L; l++) {
      const float* from = x + (size_t)l * row;
      for (int i = 0; i < K; i += 16)
        __builtin_prefetch(from + (size_t)8 * row + i);
      along(from, K, wide + (size_t)l * n);
    }
    return *this;
  }
  // Those in panels of rows: [L / STRIP][words(K)][STRIP].
  void in_panels() {
    int n = words<E>(K);
    panels = panels_room.get((size_t)padded(L) * n);
    for (int l = 0; l < L; l += STRIP)
      transpose(wide + (size_t)l * n, n, std::min(STRIP, L - l), n,
                panels + (size_t)l * n, STRIP);
  }
  // Words across rows: [words(L)][whole(K)].
  void across_l() {
    tall = across_room.get((size_t)words<E>(L) * whole(K));
    for (int l = 0; l < L; l += NUMBERS<E>) {
      const float* from = x + (size_t)l * row;
      across(from, l + 1 < L ? from + row : nullptr, K,
             tall + (size_t)(l / NUMBERS<E>) * whole(K));
    }
  }
};

// The query heads of a key/value head, at work.
template <class E>
struct Head {
  int L, K, ld, lds;  // Of rows of K numbers, and of L scores.
  Side<E> q, k, v, dout;
  Room<float> p_room, dp_room, sums_room, dk_room, dv_room;
  Room<E> words_room;
  float *p, *dp, *sums;
  std::vector<int> segments;
  const ivec lane = lanes();

  // Rows of scores are an odd number of cache lines apart, which else would
  // contend for the same places of the L1 cache.
  void begin(const Attention& a, int b, int g) {
    L = a.L, K = a.K, ld = whole(K), lds = padded(L) + 16;
    p = p_room.get((size_t)QUERIES * lds);
    dp = dp_room.get((size_t)QUERIES * lds);
    sums = sums_room.get((size_t)L * ld);
    size_t at = ((size_t)b * L * a.G + g) * K;
    k.of(a.k + at, L, K, a.G * K), v.of(a.v + at, L, K, a.G * K);
    segments.assign(a.segments ? lds : 0, 0);
    if (a.segments)
      std::copy_n(a.segments + (size_t)b * L, L, segments.begin());
  }

  // -1 where query l sees column c + i, else 0.
  ivec seen(int l, int c) const {
    ivec see = lane + c <= l;
    if (segments.size()) see &= *(const ivec*)&segments[c] == segments[l];
    return see;
  }

  // to[r][c] = x[l + r] . y[c] for the columns before `end`.
  void against(const Side<E>& x, int l, int count, const Side<E>& y, int end,
               float* to) {
    int n = words<E>(K);
    for (int c0 = 0; c0 < end; c0 += STRIP)
      product(x.wide + (size_t)l * n, n, count, y.panels + (size_t)c0 * n,
              STRIP, n, std::min(STRIP, whole(end - c0)),
              [&](int r, int c, vec sum) {
                store(to + (size_t)r * lds + c0 + c, sum);
              });
  }

  // put(r, c, sums): row r of x[count][lds] @ y; from `end` on x is 0.
  template <class F>
  void times(const float* x, int count, int end, const Side<E>& y,
             const F& put) {
    E* w = words_room.get((size_t)QUERIES * lds);
    for (int r = 0; r < count; r++)
      along(x + (size_t)r * lds, whole(end), w + (size_t)r * lds);
    product(w, lds, count, y.tall, ld, words<E>(end), ld, put);
  }

  // to[c] += sum over r of x[r][c] y[l + r].
  void add_columns(const float* x, int l, int count, int end, const Side<E>& y,
                   float* to) {
    constexpr int S = NUMBERS<E>;
    E* w = words_room.get((size_t)QUERIES * lds);
    for (int r = 0; r < count; r += S) {
      const float* from = x + (size_t)r * lds;
      across(from, r + 1 < count ? from + lds : nullptr, end,
             w + (size_t)(r / S) * lds);
    }
    product<false, true>(w, lds, end, y.tall + (size_t)(l / S) * ld, ld,
                         words<E>(count), ld, [&](int r, int c, vec sum) {
                           float* at = to + (size_t)r * ld + c;
                           store(at, load(at) + sum);
                         });
  }

  void scatter(const float* from, float* x, int stride) const {
    for (int l = 0; l < L; l++)
      memcpy(x + (size_t)l * stride, from + (size_t)l * ld, 4 * (size_t)K);
  }

  // p becomes the probabilities of row l + r times a number, of which
  // `inverse` is the inverse. Returns the log-sum-exp of the scores.
  float probabilities(int l, int r, int end, float scale, float& inverse) {
    float* x = p + (size_t)r * lds;
    vec most = all(-1e30f), sums{};
    for (int c = 0; c < end; c += W) {
      vec s = seen(l + r, c) ? load(x + c) : all(-1e30f);
      store(x + c, s), most = s > most ? s : most;
    }
    float top = most[0];
    for (int i = 1; i < W; i++) top = std::max(top, most[i]);
    for (int c = 0; c < end; c += W) {
      vec e = exp((load(x + c) - top) * scale);
      store(x + c, e), sums += e;
    }
    float total = sum(sums);
    inverse = 1 / total;
    return top * scale + logf(total);
  }

  void forward(const Attention& a, int b, int g) {
    begin(a, b, g);
    k.along_k().in_panels(), v.across_l();
    float scale = 1 / sqrtf((float)K), inverse[QUERIES];
    for (int h = g * (a.H / a.G); h < (g + 1) * (a.H / a.G); h++) {
      size_t at = ((size_t)b * L * a.H + h) * K;
      q.of(a.q + at, L, K, a.H * K).along_k();
      for (int l = 0; l < L; l += QUERIES) {
        int count = std::min(QUERIES, L - l), end = l + count;
        against(q, l, count, k, end, p);
        for (int r = 0; r < count; r++) {
          float lse = probabilities(l, r, end, scale, inverse[r]);
          a.lse[((size_t)b * a.H + h) * L + l + r] = lse;
        }
        times(p, count, end, v, [&](int r, int c, vec sum) {
          store(sums + (size_t)(l + r) * ld + c, sum * inverse[r]);
        });
      }
      scatter(sums, a.out + at, a.H * K);
    }
  }

  // p becomes the probabilities of row l + r, dp the gradient of its scores.
  void row_gradient(int l, int r, int end, float lse, float delta,
                    float scale) {
    float *x = p + (size_t)r * lds, *dx = dp + (size_t)r * lds;
    for (int c = 0; c < end; c += W) {
      ivec see = seen(l + r, c);
      vec probability = exp(load(x + c) * scale - lse);
      vec d = probability * (load(dx + c) - delta) * scale;
      store(x + c, see ? probability : vec{});
      store(dx + c, see ? d : vec{});
    }
  }

  void backward(const Attention& a, int b, int g) {
    begin(a, b, g);
    k.along_k().in_panels(), v.along_k().in_panels(), k.across_l();
    size_t size = (size_t)L * ld, of_k = ((size_t)b * L * a.G + g) * K;
    float *dk = dk_room.get(size), *dv = dv_room.get(size);
    std::fill_n(dk, size, 0.0f), std::fill_n(dv, size, 0.0f);
    float scale = 1 / sqrtf((float)K);
    for (int h = g * (a.H / a.G); h < (g + 1) * (a.H / a.G); h++) {
      size_t at = ((size_t)b * L * a.H + h) * K, stride = a.H * K;
      const float* lse = a.lse + ((size_t)b * a.H + h) * L;
      q.of(a.q + at, L, K, stride).along_k().across_l();
      dout.of(a.dout + at, L, K, stride).along_k().across_l();
      for (int l = 0; l < L; l += QUERIES) {
        int count = std::min(QUERIES, L - l), end = l + count;
        against(q, l, count, k, end, p);
        against(dout, l, count, v, end, dp);
        for (int r = 0; r < count; r++) {
          const float* out = a.out + at + (l + r) * stride;
          const float* d = a.dout + at + (l + r) * stride;
          for (int i = 0; i < K; i += 16)
            __builtin_prefetch(out + 12 * stride + i);
          row_gradient(l, r, end, lse[l + r], dot(out, d, K), scale);
        }
        times(dp, count, end, k, [&](int r, int c, vec sum) {
          store(sums + (size_t)(l + r) * ld + c, sum);
        });
        add_columns(dp, l, count, end, q, dk);
        add_columns(p, l, count, end, dout, dv);
      }
      scatter(sums, a.dq + at, stride);
    }
    scatter(dk, a.dk + of_k, a.G * K), scatter(dv, a.dv + of_k, a.G * K);
  }
};
