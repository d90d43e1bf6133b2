// Rows of floats as the words that product.h takes on both sides: floats, or
// pairs of neighbours along the axis that is summed over, in bfloat16.
#pragma once
#include "../kernels/vector.h"

#if !defined(__AVX512BF16__)
INLINE void add(vec& acc, const uint32_t* x, uvec w) {
  acc += as_float(*x << 16) * (vec)(w << 16);
  acc += as_float(*x & 0xFFFF0000u) * (vec)(w & 0xFFFF0000u);
}
#endif
#include "../kernels/product.h"

// Columns of a tile of a product, which are stored by themselves: the rows of a
// wider panel would contend for the same places of the L1 cache.
constexpr int STRIP = W * TILE;

template <class E>
constexpr int NUMBERS = std::is_same_v<E, float> ? 1 : 2;  // In a word.
template <class E>
constexpr int words(int n) {
  return (n + NUMBERS<E> - 1) / NUMBERS<E>;
}

INLINE float dot(const float* x, const float* y, int n) {
  vec sums{};
  int i = 0;
  for (; i + W <= n; i += W) sums += load(x + i) * load(y + i);
  float rest = 0;
  for (; i < n; i++) rest += x[i] * y[i];
  return sum(sums) + rest;
}

// The words along one row of n numbers.
INLINE void along(const float* x, int n, float* out) {
  int i = 0;
  for (; i + W <= n; i += W) store(out + i, load(x + i));
  for (; i < n; i++) out[i] = x[i];
}
// The words across two rows, of which the second may be missing (null).
INLINE void across(const float* x, const float*, int n, float* out) {
  along(x, n, out);
}

// In pairs: whole vectors first, if the processor rounds them.
INLINE void along(const float* x, int n, Pair* out) {
  int i = 0;
#if defined(__AVX512BF16__)
  for (; i + 2 * W <= n; i += 2 * W)
    _mm512_storeu_si512(out + i / 2, (__m512i)_mm512_cvtne2ps_pbh(
                                         (__m512)load(x + i + W),
                                         (__m512)load(x + i)));
#endif
  for (; i < n; i += 2) out[i / 2] = pair_of(x[i], i + 1 < n ? x[i + 1] : 0);
}
INLINE void across(const float* x, const float* y, int n, Pair* out) {
  int i = 0;
#if defined(__AVX512BF16__)
  auto half = [](const float* p) {
    return (uvec)_mm512_cvtepu16_epi32(
        (__m256i)_mm512_cvtneps_pbh((__m512)load(p)));
  };
  for (; y && i + W <= n; i += W)
    *(uvec*)(out + i) = half(x + i) | half(y + i) << 16;
#endif
  for (; i < n; i++) out[i] = pair_of(x[i], y ? y[i] : 0);
}

// out[c][r] = x[r][c], in blocks that fit the L1 cache.
template <class E>
static void transpose(const E* x, int ldx, int rows, int columns, E* out,
                      int ldo) {
  constexpr int B = 16;
  for (int c0 = 0; c0 < columns; c0 += B) {
    int c1 = std::min(c0 + B, columns), r0 = 0;
    for (; c1 - c0 == B && r0 + B <= rows; r0 += B)
      for (int c = 0; c < B; c++)
        for (int r = 0; r < B; r++)
          out[(size_t)(c0 + c) * ldo + r0 + r] =
              x[(size_t)(r0 + r) * ldx + c0 + c];
    for (int c = c0; c < c1; c++)
      for (int r = r0; r < rows; r++)
        out[(size_t)c * ldo + r] = x[(size_t)r * ldx + c];
  }
}

// Room that is kept between calls; what it holds is undefined.
template <class E>
struct Room {
  std::vector<E> held;
  E* get(size_t n) {
    if (held.size() < n) held.resize(n);
    return held.data();
  }
};
