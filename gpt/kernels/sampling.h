// The choice of a token: gpt/decoding/sampling.py, row by row.
#pragma once
#include "vector.h"

// One row's settings; top_k is exact in a float, being at most V.
struct Sampling {
  float temperature, top_k, top_p, min_p, repetition, frequency, presence;
};

// Threefry-2x32 of 20 rounds (Salmon et al. 2011, Parallel random numbers: as
// easy as 1, 2, 3), JAX's generator: (a, b) in place.
static void threefry(uint32_t key0, uint32_t key1, uint32_t& a, uint32_t& b) {
  static const int turns[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  uint32_t keys[3] = {key0, key1, key0 ^ key1 ^ 0x1BD11BDAu};
  a += keys[0], b += keys[1];
  for (int i = 0; i < 5; i++) {
    for (int turn : turns[i % 2])
      a += b, b = (b << turn | b >> (32 - turn)) ^ a;
    a += keys[(i + 1) % 3], b += keys[(i + 2) % 3] + i + 1;
  }
}

// sampling.uniforms(seed, step, 1): in [0, 1).
static float uniform(uint32_t seed, uint32_t step) {
  uint32_t key0 = 0, key1 = step, a = 0, b = 0;
  threefry(0, seed, key0, key1);
  threefry(key0, key1, a, b);
  return as_float((a ^ b) >> 9 | 0x3F800000u) - 1;
}

// The largest t in [0, 1] with holds(t), by bisection of its bit pattern.
template <class F>
static float bisect(F holds) {
  uint32_t low = 0, high = 0x3F800001;
  while (low + 1 < high) {
    uint32_t middle = (low + high) / 2;
    (holds(as_float(middle)) ? low : high) = middle;
  }
  return as_float(low);
}

// p: float[padded(V)] logits on entry, overwritten.
static int sample(float* p, int V, const Sampling& s, float uniform,
                  const bool* in_prompt, const int* counts, const float* bias) {
  if (s.repetition != 1 || s.frequency != 0 || s.presence != 0)
    for (int v = 0; v < V; v++) {
      if (in_prompt[v] || counts[v] > 0)
        p[v] *= p[v] > 0 ? 1 / s.repetition : s.repetition;
      p[v] -= s.frequency * counts[v];
      p[v] -= counts[v] > 0 ? s.presence : 0.0f;
    }
  for (int v = 0; v < V; v++) p[v] += bias[v];
  int end = whole(V);
  std::fill(p + V, p + end, -INFINITY);
  // The largest probability is e^0 = 1; they are not normalized. Greedy: all
  // others are 0, and of equal ones the first is taken.
  bool greedy = s.temperature <= 0;
  softmax(p, end, greedy ? 1e30f : 1 / std::max(s.temperature, 1e-6f));

  auto keep = [&](float t) {
    for (int v = 0; v < V; v++) p[v] = p[v] >= t ? p[v] : 0;
  };
  auto mass = [&](float t) {  // Of the tokens with at least probability t.
    return total(p, end, [&](vec x) { return x >= t ? x : vec{}; });
  };
  auto count = [&](float t) {
    return total(p, end, [&](vec x) { return x >= t ? all(1) : vec{}; });
  };
  if (s.top_k > 0 && !greedy)
    keep(bisect([&](float t) { return count(t) >= s.top_k; }));
  if (s.top_p < 1 && !greedy) {
    float target = s.top_p * mass(0);
    keep(bisect([&](float t) { return mass(t) >= target; }));
  }
  if (s.min_p > 0) keep(s.min_p);
  // Inverse CDF: skip runs of vectors, then take tokens one by one.
  constexpr int RUN = 8 * W;
  float target = greedy ? 0 : uniform * mass(0), cdf = 0;
  for (int run = 0; run < end; run += RUN) {
    int stop = std::min(run + RUN, end);
    float next = cdf + total(p + run, stop - run, [](vec x) { return x; });
    if (next > target)
      for (int v = run; v < stop; v++)
        if (p[v] > 0 && (cdf += p[v]) > target) return v;
    cdf = next;
  }
  int last = V - 1;  // Rounding: the sum stayed below the target.
  while (last > 0 && p[last] == 0) last--;
  return last;
}
