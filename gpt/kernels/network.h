// The GPT of gpt/model/transformer.py for a few rows: one token each, at a
// position of a slot. The rows are of one slot, in ascending order of position,
// or each of a slot of its own.
//
// Axis letters are those of the model: D width, H heads, G key/value heads,
// K head dimension, F MLP width, V vocabulary, N layers. K is padded with
// zeros to whole vectors.
#pragma once
#include "product.h"

constexpr int CHUNK = 96;  // Rows at once; a long prompt takes several passes.

// As calls.py gives it; T: positions, S: columns of a slot.
struct Shape {
  int D, H, G, K, F, V, N, T, S, head_dim, mlp, rope, learned;
  int layer_norm, qk_norm, exclusive, embed_norm, final_norm;
  int pairs, rounded, cache_pairs, threads;
  float eps, soft_cap;
  int E() const { return (H + 2 * G) * K; }
};

// As calls.py gives them: the state, which is changed in place, and weights.
// Keys: panels of 64 columns, [slot][N][G][S / 64][K][64], or with pairs
// [K / 2][64]; values: rows, [slot][N][G][S][K], or with pairs [S / 2][K]. S is
// a multiple of 64.
struct Operands {
  int *tokens, *counts;     // [slot][S], [slot][V]
  uint32_t *k, *v;          // The last ones of the o.
  const void *wte, *wpe;    // [V][D], [T][D]: bfloat16 if the rest is
  const float* turns;       // [T][head_dim]: cosines, sines of RoPE
  const float *norms, *qk;  // gain and bias: [2 + 2 N][2][D], [N][2][2][K]
  const uint32_t *qkv, *wo, *fc1, *fc2, *head;
};

// y = norm(x) * gain + bias; x may be y, and is 0 from n to a whole vector.
static void norm(float* y, const float* x, int n, bool layer, const float* gain,
                 float eps) {
  int end = whole(n);
  float mean = layer ? total(x, end, [](vec x) { return x; }) / n : 0;
  float squares = total(x, end, [&](vec x) { return (x - mean) * (x - mean); });
  squares -= (end - n) * mean * mean;  // Of the padding.
  float scale = 1 / sqrtf(squares / n + eps);
  for (int i = 0; i < n; i++)
    y[i] = (x[i] - mean) * scale * gain[i] + gain[n + i];
}

// Rotates the pairs (x_i, x_{i + K/2}).
INLINE void rotate(float* x, const float* turn, int K) {
  for (int i = 0, half = K / 2; i < half; i++) {
    float a = x[i], b = x[i + half], c = turn[i], s = turn[i + half];
    x[i] = a * c - b * s, x[i + half] = b * c + a * s;
  }
}

// y without what lies along the position's own value v.
static void exclude(float* y, const float* v, int K) {
  float along = 0, square = 1e-6f;
  for (int i = 0; i < K; i++) along += y[i] * v[i], square += v[i] * v[i];
  for (int i = 0; i < K; i++) y[i] -= along / square * v[i];
}

// What one call needs beside its operands; it keeps its room between calls.
struct Network {
  Shape m;
  Operands o;
  int rows, token[CHUNK], slot[CHUNK], pos[CHUNK];  // Of a pass.
  Rows x, h, qkv, att, f, scores;
  // Right tokens of a draft, on average, and passes since the last draft.
  float right = 1;
  int passes = 0;

  // Drafts cost a part of a pass. Where few are right, one in 32 is tried.
  bool drafts_pay() { return right > 0.6f || ++passes % 32 == 0; }

  // Row r of the next pass: token t at position p of slot s.
  void place(int r, int t, int s, int p) {
    token[r] = t, slot[r] = s, pos[r] = std::min(p, m.S - 1);
    o.tokens[(size_t)s * m.S + pos[r]] = t;
  }

  // Elements of the keys of a head, and of its values.
  size_t head_size() { return (size_t)m.S * m.K / (m.cache_pairs ? 2 : 1); }
  size_t head(int slot, int layer, int g) {
    return (((size_t)slot * m.N + layer) * m.G + g) * head_size();
  }

  template <class F>
  void each_row(F f) {
    pool->run(rows, rows * m.D < 1 << 13 ? 1 : m.threads, f);
  }

  void normed(int i, Rows& to) {
    each_row([&](int r) {
      norm(to[r], x[r], m.D, m.layer_norm, o.norms + i * 2 * m.D, m.eps);
    });
  }

  void embed() {
    std::fill_n(x[0], (size_t)rows * x.ld, 0.0f);
    auto add = [&](float* to, const void* table, int i) {
      size_t at = (size_t)i * m.D;
      for (int j = 0; j < m.D; j++)
        to[j] += m.pairs ? from_bf16(((const uint16_t*)table)[at + j])
                         : ((const float*)table)[at + j];
    };
    for (int r = 0; r < rows; r++) {
      add(x[r], o.wte, token[r]);
      if (m.learned) add(x[r], o.wpe, std::min(pos[r], m.T - 1));
    }
    if (m.embed_norm) normed(0, x);
  }

  // Puts a key and a value into column s of the head that begins at `at`.
  void put(size_t at, int s, const float* key, const float* value) {
    int K = m.K, depth = m.cache_pairs ? K / 2 : K;
    size_t panel = at + (size_t)(s / PANEL) * depth * PANEL + s % PANEL;
    if (m.cache_pairs) {
      for (int i = 0; i < K; i += 2)
        o.k[panel + i / 2 * PANEL] = pair_of(key[i], key[i + 1]);
      uint32_t* row = o.v + at + (size_t)(s / 2) * K;
      for (int i = 0; i < K; i++)  // The later one of a pair follows, or is 0.
        row[i] =
            s % 2 ? pair_of(from_bf16(row[i]), value[i]) : pair_of(value[i], 0);
    } else {
      float *k = (float*)o.k + panel, *v = (float*)o.v + at;
      for (int i = 0; i < K; i++) k[i * PANEL] = key[i];
      std::copy_n(value, K, v + (size_t)s * K);
    }
  }

  // Normalizes and rotates the queries and keys of one key/value head; keys and
  // values join the cache. Heads are apart in memory, so threads take heads;
  // with pairs, neighbouring rows of a slot write halves of one number.
  void store_head(int layer, int g) {
    int K = m.K, M = m.H / m.G;
    for (int r = 0; r < rows; r++) {
      float *k = qkv[r] + (m.H + g) * K, *v = k + m.G * K;
      for (int i = 0; i <= M; i++) {
        float* x = i < M ? qkv[r] + (g * M + i) * K : k;
        const float* gain = o.qk + (2 * layer + (i == M)) * 2 * m.head_dim;
        if (m.qk_norm) norm(x, x, m.head_dim, false, gain, m.eps);
        size_t turn = (size_t)std::min(pos[r], m.T - 1) * m.head_dim;
        if (m.rope) rotate(x, o.turns + turn, m.head_dim);
      }
      put(head(slot[r], layer, g), pos[r], k, v);
    }
  }

  // softmax(q k^T / sqrt(K)) v of `count` rows of one slot from `first` on, for
  // the queries of key/value head g. They see the columns up to their own.
  template <class E>
  void attend(int first, int count, int g, const E* k, const E* v) {
    constexpr int PER = std::is_same_v<E, float> ? 1 : 2;
    thread_local std::vector<float> room;
    int K = m.K, M = m.H / m.G, queries = count * M;
    int most = pos[first + count - 1] + 1, ld = padded(most);
    room.resize(std::max(room.size(), (size_t)queries * (ld + 2 * K + 1)));
    float *q = room.data(), *out = q + queries * K;
    float *scores = out + queries * K, *inverse = scores + queries * ld;
    for (int r = 0; r < count; r++)
      std::copy_n(qkv[first + r] + g * M * K, M * K, q + r * M * K);
    for (int s = 0; s < most; s += PANEL) {
      int columns = std::min(PANEL, whole(most - s));
      auto put = [&](int i, int c, vec sum) {
        store(scores + (size_t)i * ld + s + c, sum);
      };
      product<true>(q, K, queries, k + (size_t)s * K / PER, PANEL, K / PER,
                    columns, put, head_size());
    }
    for (int i = 0; i < queries; i++) {
      float* p = scores + (size_t)i * ld;
      int n = pos[first + i / M] + 1;
      std::fill(p + n, p + whole(n), -INFINITY);
      inverse[i] = 1 / softmax(p, whole(n), 1 / sqrtf(m.head_dim));
      std::fill(p + n, p + whole(most), 0.0f);
    }
    auto put = [&](int i, int c, vec sum) {
      store(out + (size_t)i * K + c, sum * inverse[i]);
    };
    product<true>(scores, ld, queries, v, K, (most + PER - 1) / PER, K, put,
                  head_size());
    for (int i = 0; m.exclusive && i < queries; i++)
      exclude(out + i * K, qkv[first + i / M] + (m.H + m.G + g) * K, K);
    for (int r = 0; r < count; r++)
      std::copy_n(out + r * M * K, M * K, att[first + r] + g * M * K);
  }

  // Attention of all rows to the cache, after their keys and values are in it.
  void attention(int layer) {
    // Neighbours in one slot share its keys: a few rows at once.
    bool together = rows > 1 && slot[0] == slot[1];
    int group = together ? std::max(1, ROWS / (m.H / m.G)) : 1;
    int groups = (rows + group - 1) / group;
    // Heads of one row together, if there are rows enough for every thread.
    int per = groups >= 4 * m.threads ? m.G : std::max(1, m.G / 4);
    int parts = (m.G + per - 1) / per;
    pool->run(groups * parts, m.threads, [&](int item) {
      int first = item / parts * group, count = std::min(group, rows - first);
      int begin = item % parts * per, end = std::min(begin + per, m.G);
      for (int g = begin; g < end; g++) {
        size_t at = head(slot[first], layer, g);
        const uint32_t *k = o.k + at, *v = o.v + at;
        if (m.cache_pairs) attend(first, count, g, k, v);
        else attend(first, count, g, (const float*)k, (const float*)v);
      }
    });
  }

  // to = then(from @ matrix of a layer + bias), or += with Then::ADD.
  void multiply(Rows& from, int in, const uint32_t* panels, int layer, Rows& to,
                int out, Then then) {
    Matrix matrix = {panels, in, out, m.pairs, m.rounded};
    matrix.panels += layer * matrix.count() * matrix.size();
    linear(from, rows, matrix, to, then, m.threads);
  }

  // Runs the first n rows through all layers; leaves their residual stream,
  // after the final norm, in h.
  void layers(int n) {
    Then then = (Then)m.mlp;
    bool gates = then == Then::STORE;
    int up = gates ? 2 * padded(m.F) : m.F, HK = m.H * m.K;
    rows = n;
    x.resize(rows, m.D), h.resize(rows, m.D), qkv.resize(rows, m.E());
    att.resize(rows, HK), f.resize(rows, up);
    embed();
    for (int l = 0; l < m.N; l++) {
      normed(2 + 2 * l, h);
      multiply(h, m.D, o.qkv, l, qkv, m.E(), Then::STORE);
      pool->run(m.G, rows > 1 ? m.threads : 1,
                [&](int g) { store_head(l, g); });
      attention(l);
      multiply(att, HK, o.wo, l, x, m.D, Then::ADD);
      normed(3 + 2 * l, h);
      multiply(h, m.D, o.fc1, l, f, up, then);
      if (gates)
        each_row([&](int r) {
          float *gate = f[r], *up = gate + padded(m.F);
          for (int i = 0; i < m.F; i += W)
            store(gate + i, silu(load(gate + i)) * load(up + i));
        });
      multiply(f, m.F, o.fc2, l, x, m.D, Then::ADD);
    }
    if (m.final_norm) normed(1, h);
    else std::copy_n(x[0], (size_t)rows * x.ld, h[0]);
  }

  // Logits of the rows that `layers` has run: float[rows][padded(V)].
  Rows& logits() {
    scores.resize(rows, m.V);
    multiply(h, m.D, o.head, 0, scores, m.V, Then::STORE);
    if (m.soft_cap > 0)
      pool->run(rows, m.threads, [&](int r) {
        for (float* p = scores[r]; p < scores[r] + m.V; p += W)
          store(p, soft_cap(load(p), m.soft_cap));
      });
    return scores;
  }
};
