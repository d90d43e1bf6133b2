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

#define INLINED __attribute__((always_inline))
#define INLINE static inline INLINED

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

#define VECTOR __attribute__((vector_size(4 * W), aligned(4), may_alias))
typedef float vec VECTOR;
typedef uint32_t uvec VECTOR;
typedef int32_t ivec VECTOR;

constexpr int whole(int n) { return (n + W - 1) / W * W; }  // Vectors.

INLINE vec load(const float* p) { return *(const vec*)p; }
INLINE uvec load(const uint32_t* p) { return *(const uvec*)p; }
INLINE void store(float* p, vec x) { *(vec*)p = x; }
INLINE vec all(float x) { return vec{} + x; }

INLINE float as_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
INLINE uint32_t to_bf16(float x) {  // Round to nearest even.
  uint32_t u;
  memcpy(&u, &x, 4);
  if ((u & 0x7FFFFFFF) > 0x7F800000) return (u >> 16) | 0x40;  // NaN
  return (u + 0x7FFF + ((u >> 16) & 1)) >> 16;
}
INLINE uint32_t pair_of(float x, float y) {
  return to_bf16(x) | to_bf16(y) << 16;
}
INLINE float from_bf16(uint16_t bits) { return as_float((uint32_t)bits << 16); }

// Halves that the compiler knows: in a loop it would add up in memory.
template <int HALF = W / 2>
INLINE float sum(vec a) {
  for (int i = 0; i < HALF; i++) a[i] += a[i + HALF];
  if constexpr (HALF > 1) return sum<HALF / 2>(a);
  else return a[0];
}

// The sum of f(x) over the vectors x of p[0, end). Two sums at a time, as an
// addition takes longer than a load.
template <class F>
INLINE float total(const float* p, int end, F f) {
  vec a{}, b{};
  int i = 0;
  for (; i + 2 * W <= end; i += 2 * W)
    a += f(load(p + i)), b += f(load(p + i + W));
  if (i < end) a += f(load(p + i));
  return sum(a + b);
}

// e^x to 2 ulp (Cephes' expf); 0 below -87, and at most e^88.
INLINE vec exp(vec x) {
  vec low = all(-87.0f), high = all(88.0f);
  vec clamped = x < low ? low : x > high ? high : x;
  // Adding 1.5 * 2^23 rounds to an integer, in the low bits of the sum.
  vec magic = all(12582912.0f);
  vec shifted = clamped * 1.44269504088896341f + magic;
  ivec n = (ivec)shifted - (ivec)magic;
  vec r = shifted - magic;
  vec y = clamped - r * 0.693359375f + r * 2.12194440e-4f;
  vec p = all(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f,
                  1.6666665459e-1f, 5.0000001201e-1f})
    p = p * y + c;
  p = p * y * y + y + 1.0f;
  vec e = (vec)((ivec)p + (n << 23));
  return x < low ? vec{} : e;
}

INLINE vec silu(vec x) { return x / (1.0f + exp(-x)); }
// The tanh form: 0.5 x (1 + tanh(u / 2)) = x / (1 + exp(-u)).
INLINE vec gelu(vec x) {
  return x / (1.0f + exp(-1.5957691216f * (x + 0.044715f * x * x * x)));
}
INLINE vec soft_cap(vec x, float cap) {
  return cap * (1.0f - 2.0f / (1.0f + exp(2.0f / cap * x)));
}

// p = e^((p - max p) * scale), of whole vectors; returns the sum.
static float softmax(float* p, int end, float scale) {
  vec most = all(-INFINITY), sums{};
  for (int i = 0; i < end; i += W)
    most = load(p + i) > most ? load(p + i) : most;
  float best = most[0];
  for (int i = 1; i < W; i++) best = std::max(best, most[i]);
  for (int i = 0; i < end; i += W) {
    vec e = exp((load(p + i) - best) * scale);
    store(p + i, e), sums += e;
  }
  return sum(sums);
}

template <int N>
using Int = std::integral_constant<int, N>;

// f(0) ... f(N - 1) with constant indices: what they index stays in registers.
template <int N, class F>
INLINE void unroll(F&& f) {
  if constexpr (N > 0) unroll<N - 1>(f), f(Int<N - 1>{});
}
#define EACH(i) [&](auto i) INLINED
