// The GPT of gpt/model/transformer.py for a few rows: one token each, at a
// position of a slot. Rows of one slot are in ascending order of position.
//
// Axis letters are those of the model: D width, H heads, G key/value heads,
// K head dimension, F MLP width, V vocabulary, N layers.
#pragma once
#include "product.h"

constexpr int CHUNK = 96;  // Rows at once; a long prompt takes several passes.

constexpr int padded(int n) { return (n + PANEL - 1) / PANEL * PANEL; }

enum class Mlp { RELU2, RELU, GELU, SWIGLU };

struct Shape {
  int D, H, G, K, F, V, N, T;  // T: positions.
  Mlp mlp;
  bool rope, layer_norm, qk_norm, embed_norm, final_norm;
  float eps, soft_cap;
  int threads;
  int E() const { return (H + 2 * G) * K; }
  int up() const { return mlp == Mlp::SWIGLU ? 2 * padded(F) : F; }
};

// A gain and a bias [N][D], or null.
struct Norm {
  const float *gain, *bias;
};

// Weights of layer l begin at l times the size of a layer's.
struct Weights {
  const void *wte, *wpe;  // [V][D], and [T][D] or null
  bool bf16;              // of these two
  const float* turns;     // [T][K]: cosines and sines of RoPE, or null
  Norm embed, attn, mlp, final, q, k;
  Matrix qkv, wo, fc1, fc2, head;
};

// Keys: panels of 64 columns, [slot][N][G][S / 64][K][64], or with pairs
// [K / 2][64]; values: rows, [slot][N][G][S][K], or with pairs [S / 2][K]. S is
// a multiple of 64.
struct Cache {
  void *k, *v;
  bool pairs;
  int N, G, S, K;
  size_t head(int slot, int layer, int g) const {
    return (((size_t)slot * N + layer) * G + g) * S * K / (pairs ? 2 : 1);
  }
};

INLINE void put_key(float* panels, int K, int s, const float* k) {
  float* to = panels + (size_t)(s / PANEL) * K * PANEL + s % PANEL;
  for (int i = 0; i < K; i++) to[i * PANEL] = k[i];
}
INLINE void put_key(Pair* panels, int K, int s, const float* k) {
  Pair* to = panels + (size_t)(s / PANEL) * (K / 2) * PANEL + s % PANEL;
  for (int i = 0; i < K; i += 2)
    to[i / 2 * PANEL].bits = to_bf16(k[i]) | to_bf16(k[i + 1]) << 16;
}
INLINE void put_value(float* rows, int K, int s, const float* v) {
  memcpy(rows + (size_t)s * K, v, 4 * K);
}
INLINE void put_value(Pair* rows, int K, int s, const float* v) {
  Pair* to = rows + (size_t)(s / 2) * K;
  for (int i = 0; i < K; i++) {  // The later one of a pair follows, or is 0.
    uint32_t x = to_bf16(v[i]);
    to[i].bits = s % 2 ? (to[i].bits & 0xFFFF) | x << 16 : x;
  }
}

// y = norm(x) * gain + bias; x may be y.
static void norm(float* y, const float* x, int n, bool layer, Norm p,
                 float eps) {
  vec total{}, squares{};
  float mean = 0, rest = 0;
  int whole = n / W * W;
  if (layer) {
    for (int i = 0; i < whole; i += W) total += load(x + i);
    mean = sum(total);
    for (int i = whole; i < n; i++) mean += x[i];
    mean /= n;
  }
  for (int i = 0; i < whole; i += W) {
    vec z = load(x + i) - mean;
    squares += z * z;
  }
  for (int i = whole; i < n; i++) rest += (x[i] - mean) * (x[i] - mean);
  float scale = 1 / sqrtf((sum(squares) + rest) / n + eps);
  for (int i = 0; i < n; i++) y[i] = (x[i] - mean) * scale;
  if (p.gain)
    for (int i = 0; i < n; i++) y[i] *= p.gain[i];
  if (p.bias)
    for (int i = 0; i < n; i++) y[i] += p.bias[i];
}

// Rotates the pairs (x_i, x_{i + K/2}).
INLINE void rotate(float* x, const float* turn, int K) {
  for (int i = 0, half = K / 2; i < half; i++) {
    float a = x[i], b = x[i + half], c = turn[i], s = turn[i + half];
    x[i] = a * c - b * s, x[i + half] = b * c + a * s;
  }
}

// softmax(q k^T / sqrt(K)) v for `count` query vectors of one key/value head;
// query i sees n[i] columns. q, out: float[count][K]. next: elements between
// this head and the one that comes after it.
template <class E>
static void attend(const float* q, int count, const int* n, const E* k,
                   const E* v, int K, float* out, size_t next) {
  thread_local std::vector<float> room;
  int most = *std::max_element(n, n + count), ld = padded(most);
  size_t needed = (size_t)count * ld;
  if (room.size() < needed) room.resize(needed);
  float* scores = room.data();
  for (int s = 0; s < most; s += PANEL) {
    int columns = std::min(PANEL, (most - s + W - 1) / W * W);
    const E* panel = k + (size_t)s * (std::is_same_v<E, float> ? K : K / 2);
    product<true>(q, K, count, panel, PANEL, K, columns,
                  [&](int r, int c, vec sum) {
                    store(scores + (size_t)r * ld + s + c, sum);
                  }, next);
  }
  float scale = 1 / sqrtf((float)K);
  float inverse[64];
  for (int r = 0; r < count; r++) {
    float* p = scores + (size_t)r * ld;
    int end = (n[r] + W - 1) / W * W;
    // What lies beyond n[r] must not reach the maximum.
    for (int s = n[r]; s < end; s++) p[s] = -1e30f;
    vec best = all(-1e30f), total{};
    for (int s = 0; s < end; s += W) {
      vec x = load(p + s);
      best = x > best ? x : best;
    }
    float top = largest(best) * scale;
    for (int s = 0; s < end; s += W) {
      vec e = exp(load(p + s) * scale - top);
      store(p + s, e), total += e;
    }
    for (int s = n[r]; s < std::min(ld, most + 1); s++) p[s] = 0;
    inverse[r] = 1 / sum(total);
  }
  // K may be no multiple of W: then the last columns are computed one by one.
  int whole = K / W * W;
  if (whole)
    product<true>(scores, ld, count, v, K, most, whole,
                  [&](int r, int c, vec sum) {
                    store(out + (size_t)r * K + c, sum * inverse[r]);
                  }, next);
  for (int i = whole; i < K; i++)
    for (int r = 0; r < count; r++) {
      float total = 0;
      for (int s = 0; s < n[r]; s++) {
        float x;
        if constexpr (std::is_same_v<E, float>) x = v[(size_t)s * K + i];
        else x = from_bf16(v[(size_t)(s / 2) * K + i].bits >> s % 2 * 16);
        total += scores[(size_t)r * ld + s] * x;
      }
      out[(size_t)r * K + i] = total * inverse[r];
    }
}

// Attention of all rows to the cache, after their keys and values are in it.
static void attention(const Shape& m, const float* qkv, int ldq, int rows,
                      const Cache& cache, int layer, const int* slot,
                      const int* pos, float* out, int ldo) {
  int M = m.H / m.G, K = m.K;
  // Neighbours in one slot share its keys: up to this many rows at once.
  int most = std::max(1, ROWS / M);
  thread_local std::vector<int> starts;
  starts.assign(1, 0);
  for (int r = 1; r <= rows; r++)
    if (r == rows || slot[r] != slot[starts.back()] ||
        r - starts.back() == most)
      starts.push_back(r);
  const int* begin = starts.data();
  int groups = (int)starts.size() - 1;
  // Heads of one row together, if there are rows enough for every thread.
  int per = groups >= 4 * m.threads ? m.G : std::max(1, m.G / 4);
  int parts = (m.G + per - 1) / per;
  Pool::get().run(groups * parts, m.threads, [&](int item) {
    thread_local std::vector<float> q, o;
    int first = begin[item / parts], end = begin[item / parts + 1];
    int count = (end - first) * M, g = item % parts * per;
    q.resize((size_t)count * K + 1), o.resize((size_t)count * K);
    std::vector<int> n(count);
    for (int last = std::min(g + per, m.G); g < last; g++) {
      for (int r = first, i = 0; r < end; r++)
        for (int j = 0; j < M; j++, i++) {
          n[i] = pos[r] + 1;
          memcpy(&q[(size_t)i * K], qkv + (size_t)r * ldq + (g * M + j) * K,
                 4 * K);
        }
      size_t at = cache.head(slot[first], layer, g);
      for (int i = 0; i < count; i += 60) {
        auto run = [&](auto* k, auto* v) {
          attend(&q[(size_t)i * K], std::min(60, count - i), &n[i], k + at,
                 v + at, K, &o[(size_t)i * K],
                 cache.head(0, 0, 1));
        };
        if (cache.pairs) run((Pair*)cache.k, (Pair*)cache.v);
        else run((float*)cache.k, (float*)cache.v);
      }
      for (int r = first, i = 0; r < end; r++)
        for (int j = 0; j < M; j++, i++)
          memcpy(out + (size_t)r * ldo + (g * M + j) * K, &o[(size_t)i * K],
                 4 * K);
    }
  });
}

static Matrix of_layer(const Matrix& m, int layer) {
  Matrix found = m;
  found.panels = (const uint32_t*)m.panels + layer * m.count() * m.size();
  if (m.bias) found.bias += (size_t)layer * padded(m.out);
  return found;
}
static Norm of_layer(Norm p, int layer, int n) {
  return {p.gain ? p.gain + (size_t)layer * n : nullptr,
          p.bias ? p.bias + (size_t)layer * n : nullptr};
}

// What one call needs beside its operands; it keeps its room between calls.
struct Network {
  Shape m;
  Weights w;
  Cache cache;
  std::vector<float> x, h, qkv, att, f, scores;
  // Right tokens of a draft, on average, and passes since the last draft.
  float right = 1;
  int passes = 0;

  // Drafts cost a part of a pass. Where few are right, one in 32 is tried.
  bool drafts_pay() { return right > 0.6f || ++passes % 32 == 0; }
  void note_drafts(int found) { right += 0.1f * (found - right); }

  template <class F>
  void each_row(int rows, F f) {
    Pool::get().run(rows, rows * m.D < 1 << 13 ? 1 : m.threads, f);
  }

  void normed(const Norm& p, std::vector<float>& to, int rows) {
    each_row(rows, [&](int r) {
      size_t at = (size_t)r * padded(m.D);
      norm(&to[at], &x[at], m.D, m.layer_norm, p, m.eps);
    });
  }

  void embed(const int* token, const int* pos, int rows) {
    auto row = [&](const void* table, int i, float* to, bool add) {
      size_t at = (size_t)i * m.D;
      for (int j = 0; j < m.D; j++) {
        float value = w.bf16 ? from_bf16(((uint16_t*)table)[at + j])
                             : ((float*)table)[at + j];
        to[j] = add ? to[j] + value : value;
      }
    };
    for (int r = 0; r < rows; r++) {
      float* to = &x[(size_t)r * padded(m.D)];
      row(w.wte, token[r], to, false);
      if (w.wpe) row(w.wpe, std::min(pos[r], m.T - 1), to, true);
    }
    if (m.embed_norm) normed(w.embed, x, rows);
  }

  // Normalizes and rotates the queries and keys of one key/value head; keys and
  // values join the cache. Heads are apart in memory, so threads take heads;
  // with pairs, neighbouring rows of a slot write halves of one number.
  void store_head(int g, int rows, int layer, const int* slot, const int* pos) {
    int K = m.K, M = m.H / m.G, ld = padded(m.E());
    for (int r = 0; r < rows; r++) {
      float* row = &qkv[(size_t)r * ld];
      float *k = row + (m.H + g) * K, *v = k + m.G * K;
      for (int i = 0; i <= M; i++) {
        float* x = i < M ? row + (g * M + i) * K : k;
        Norm p = of_layer(i < M ? w.q : w.k, layer, K);
        if (m.qk_norm) norm(x, x, K, false, p, m.eps);
        size_t turn = (size_t)std::min(pos[r], m.T - 1) * K;
        if (m.rope) rotate(x, w.turns + turn, K);
      }
      size_t at = cache.head(slot[r], layer, g);
      if (cache.pairs) {
        put_key((Pair*)cache.k + at, K, pos[r], k);
        put_value((Pair*)cache.v + at, K, pos[r], v);
      } else {
        put_key((float*)cache.k + at, K, pos[r], k);
        put_value((float*)cache.v + at, K, pos[r], v);
      }
    }
  }

  // Runs up to CHUNK rows through all layers; leaves their residual stream,
  // after the final norm, in h.
  void layers(const int* token, const int* slot, const int* pos, int rows) {
    int ld = padded(m.D), lda = padded(m.H * m.K), ldq = padded(m.E());
    int ldf = padded(m.up());
    x.resize((size_t)CHUNK * ld), h.resize((size_t)CHUNK * ld);
    qkv.resize((size_t)CHUNK * ldq), att.resize((size_t)CHUNK * lda);
    f.resize((size_t)CHUNK * ldf);
    auto product = [&](const std::vector<float>& from, int ldx, const Matrix& w,
                       int layer, std::vector<float>& to, int ldy, Then then) {
      linear(from.data(), ldx, rows, of_layer(w, layer), to.data(), ldy, then,
             m.threads);
    };
    embed(token, pos, rows);
    for (int l = 0; l < m.N; l++) {
      normed(of_layer(w.attn, l, m.D), h, rows);
      product(h, ld, w.qkv, l, qkv, ldq, Then::STORE);
      Pool::get().run(m.G, rows > 1 ? m.threads : 1, [&](int g) {
        store_head(g, rows, l, slot, pos);
      });
      attention(m, qkv.data(), ldq, rows, cache, l, slot, pos, att.data(), lda);
      product(att, lda, w.wo, l, x, ld, Then::ADD);
      normed(of_layer(w.mlp, l, m.D), h, rows);
      const Then then[] = {Then::RELU2, Then::RELU, Then::GELU, Then::STORE};
      product(h, ld, w.fc1, l, f, ldf, then[(int)m.mlp]);
      if (m.mlp == Mlp::SWIGLU)
        each_row(rows, [&](int r) {
          float *gate = &f[(size_t)r * ldf], *up = gate + padded(m.F);
          for (int i = 0; i < padded(m.F); i += W)
            store(gate + i, silu(load(gate + i)) * load(up + i));
        });
      product(f, ldf, w.fc2, l, x, ld, Then::ADD);
    }
    if (m.final_norm) normed(w.final, h, rows);
    else std::copy(x.begin(), x.begin() + (size_t)rows * ld, h.begin());
  }

  // Logits of the rows that `layers` has run: float[rows][padded(V)].
  float* logits(int rows) {
    int ld = padded(m.V);
    if (scores.size() < (size_t)rows * ld) scores.resize((size_t)rows * ld);
    linear(h.data(), padded(m.D), rows, w.head, scores.data(), ld, Then::STORE,
           m.threads);
    if (m.soft_cap > 0)
      Pool::get().run(rows, m.threads, [&](int r) {
        float* p = &scores[(size_t)r * ld];
        for (int i = 0; i < ld; i += W)
          store(p + i, soft_cap(load(p + i), m.soft_cap));
      });
    return scores.data();
  }
};
