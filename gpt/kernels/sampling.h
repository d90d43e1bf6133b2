// The choice of a token: gpt/decoding/sampling.py, row by row.
#pragma once
#include "vector.h"

// One row's settings; top_k is exact in a float, being at most V.
struct Sampling {
  float temperature, top_k, top_p, min_p, repetition, frequency, presence;
};

// Threefry-2x32 of 20 rounds (Salmon et al. 2011, Parallel random numbers: as
// easy as 1, 2, 3), JAX's generator.
INLINE void threefry(const uint32_t key[2], uint32_t x0, uint32_t x1,
                     uint32_t out[2]) {
  static const int turns[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  uint32_t ks[3] = {key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDAu};
  x0 += ks[0], x1 += ks[1];
  for (int i = 0; i < 5; i++) {
    for (int turn : turns[i % 2]) {
      x0 += x1;
      x1 = x1 << turn | x1 >> (32 - turn);
      x1 ^= x0;
    }
    x0 += ks[(i + 1) % 3], x1 += ks[(i + 2) % 3] + i + 1;
  }
  out[0] = x0, out[1] = x1;
}

// sampling.uniforms(seed, step, 1): in [0, 1).
INLINE float uniform(uint32_t seed, uint32_t step) {
  uint32_t key[2] = {0, seed}, folded[2], bits[2];
  threefry(key, 0, step, folded);
  threefry(folded, 0, 0, bits);
  uint32_t u = (bits[0] ^ bits[1]) >> 9 | 0x3F800000u;
  float x;
  memcpy(&x, &u, 4);
  return x - 1;
}

// The largest t in [0, 1] with holds(t), by bisection of its bit pattern.
template <class F>
static float bisect(F holds) {
  int low = 0, high = 0x3F800001;
  float t;
  for (int i = 0; i < 30; i++) {
    int middle = (low + high) / 2;
    memcpy(&t, &middle, 4);
    (holds(t) ? low : high) = middle;
  }
  memcpy(&t, &low, 4);
  return t;
}

// p: float[padded(V)] logits on entry, overwritten.
static int sample(float* p, int V, const Sampling& s, float uniform,
                  const bool* in_prompt, const int* counts, const float* bias) {
  int whole = V / W * W, end = (V + W - 1) / W * W;
  if (s.repetition != 1 || s.frequency != 0 || s.presence != 0)
    for (int v = 0; v < V; v++) {
      if (in_prompt[v] || counts[v] > 0)
        p[v] *= p[v] > 0 ? 1 / s.repetition : s.repetition;
      p[v] -= s.frequency * counts[v];
      p[v] -= counts[v] > 0 ? s.presence : 0.0f;
    }
  vec top = all(-INFINITY);
  for (int v = 0; v < whole; v += W) {
    vec x = load(p + v) + load(bias + v);
    store(p + v, x), top = x > top ? x : top;
  }
  for (int v = whole; v < V; v++) p[v] += bias[v];
  for (int v = V; v < end; v++) p[v] = -INFINITY;
  if (whole < end) top = load(p + whole) > top ? load(p + whole) : top;
  float best = largest(top);
  if (s.temperature <= 0) {
    for (int v = 0; v < V; v++)
      if (p[v] >= best) return v;
    return V - 1;
  }
  float temperature = std::max(s.temperature, 1e-6f);
  vec total{};
  for (int v = 0; v < end; v += W) {
    vec e = exp((load(p + v) - best) / temperature);
    store(p + v, e), total += e;
  }
  float scale = 1 / sum(total);
  for (int v = 0; v < end; v += W) store(p + v, load(p + v) * scale);

  auto keep = [&](float t) {
    for (int v = 0; v < end; v += W) {
      vec x = load(p + v);
      store(p + v, x >= t ? x : vec{});
    }
  };
  auto mass = [&](float t) {  // Of the tokens with at least probability t.
    vec a{}, b{};
    int v = 0;
    for (; v + 2 * W <= end; v += 2 * W) {
      vec x = load(p + v), y = load(p + v + W);
      a += x >= t ? x : vec{}, b += y >= t ? y : vec{};
    }
    if (v < end) {
      vec x = load(p + v);
      a += x >= t ? x : vec{};
    }
    return sum(a + b);
  };
  float least = s.min_p * scale;  // Of the largest probability, e^0 * scale.
  if (s.top_k > 0)
    keep(bisect([&](float t) {
      ivec n{};
      for (int v = 0; v < end; v += W) n -= load(p + v) >= t;
      int found = t > 0 ? 0 : V - end;  // At 0 the padding counts, too.
      for (int i = 0; i < W; i++) found += n[i];
      return found >= s.top_k;
    }));
  if (s.top_p < 1) {
    float target = s.top_p * mass(0);
    keep(bisect([&](float t) { return mass(t) >= target; }));
  }
  if (s.min_p > 0) keep(least);
  // Inverse CDF: skip runs of vectors, then vectors, then tokens.
  constexpr int RUN = 8 * W;
  float target = uniform * mass(0), cdf = 0;
  for (int run = 0; run < end; run += RUN) {
    vec here{};
    int stop = std::min(run + RUN, end);
    for (int v = run; v < stop; v += W) here += load(p + v);
    float next = cdf + sum(here);
    if (next > target || stop == end)
      for (int v = run; v < stop; v++)
        if (p[v] > 0) {
          cdf += p[v];
          if (cdf > target) return v;
        }
    cdf = next;
  }
  int last = V - 1;  // Rounding: the sum stayed below the target.
  while (last > 0 && p[last] == 0) last--;
  return last;
}
