// Vectors as wide as the instruction set has them, and what is computed with
// them. Compiler vector extensions only, but for one bfloat16 instruction.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

// Floats in a vector, and vectors in a tile of a product: what the registers
// of AVX-512, of AVX2, and of SSE or Neon hold. Wider vectors than the
// instruction set has would run many times slower.
#if defined(__AVX512F__)
constexpr int W = 16, TILE = 4;
#elif defined(__AVX__)
constexpr int W = 8, TILE = 2;
#else
constexpr int W = 4, TILE = 4;
#endif

typedef float vec __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef uint32_t uvec
    __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * W), aligned(4), may_alias));

// Two neighbours along the axis that a product sums over, bfloat16 each: the
// earlier one in the low half.
struct Pair {
  uint32_t bits;
};

INLINE vec load(const float* p) { return *(const vec*)p; }
INLINE void store(float* p, vec x) { *(vec*)p = x; }
INLINE vec all(float x) { return vec{} + x; }

INLINE uint32_t to_bf16(float x) {  // Round to nearest even.
  uint32_t u;
  memcpy(&u, &x, 4);
  if ((u & 0x7FFFFFFF) > 0x7F800000) return (u >> 16) | 0x40;  // NaN
  return (u + 0x7FFF + ((u >> 16) & 1)) >> 16;
}
INLINE float from_bf16(uint32_t bits) {
  uint32_t u = bits << 16;
  float x;
  memcpy(&x, &u, 4);
  return x;
}

INLINE float sum(vec a) {
  float t[W];
  memcpy(t, &a, sizeof t);
  for (int half = W / 2; half; half /= 2)
    for (int i = 0; i < half; i++) t[i] += t[i + half];
  return t[0];
}
INLINE float largest(vec a) {
  float best = a[0];
  for (int i = 1; i < W; i++) best = a[i] > best ? a[i] : best;
  return best;
}

// e^x to 2 ulp (Cephes' expf); 0 below -87, and at most e^88.
INLINE vec exp(vec x) {
  vec low = all(-87.0f), high = all(88.0f);
  vec clamped = x < low ? low : x;
  clamped = clamped > high ? high : clamped;
  // Adding 1.5 * 2^23 rounds to an integer, in the low bits of the sum.
  vec magic = all(12582912.0f);
  vec shifted = clamped * 1.44269504088896341f + magic;
  ivec n = (ivec)shifted - (ivec)magic;
  vec r = shifted - magic;
  vec y = clamped - r * 0.693359375f + r * 2.12194440e-4f;
  vec p = all(1.9875691500e-4f);
  p = p * y + 1.3981999507e-3f;
  p = p * y + 8.3334519073e-3f;
  p = p * y + 4.1665795894e-2f;
  p = p * y + 1.6666665459e-1f;
  p = p * y + 5.0000001201e-1f;
  p = p * y * y + y + 1.0f;
  vec e = (vec)((ivec)p + (n << 23));
  return x < low ? vec{} : e;
}

INLINE vec silu(vec x) { return x / (1.0f + exp(-x)); }
// The tanh form: 0.5 x (1 + tanh(u)) = x / (1 + exp(-2 u)).
INLINE vec gelu(vec x) {
  vec u = 0.7978845608f * (x + 0.044715f * x * x * x);
  return x / (1.0f + exp(-2.0f * u));
}
INLINE vec soft_cap(vec x, float cap) {
  vec e = exp(2.0f / cap * x);
  return cap * (1.0f - 2.0f / (1.0f + e));
}

template <int N>
using Int = std::integral_constant<int, N>;

// f(0) ... f(N - 1) with constant indices: what they index stays in registers.
template <int N, class F>
INLINE void unroll(F&& f) {
  if constexpr (N > 0) {
    unroll<N - 1>(f);
    f(Int<N - 1>{});
  }
}
#define EACH(i) [&](auto i) __attribute__((always_inline))
