// Products of a few rows with a matrix that is stored in panels.
//
// A panel is 64 columns of a matrix, row after row: float[in][64], or, in
// bfloat16, Pair[in / 2][64]. A tile is some rows times TILE vectors of a
// panel's columns. Each sum runs over `in` in order, in one register: the
// result for a row does not depend on which rows it shares a tile with.
#pragma once
#include <vector>

#include "pool.h"
#include "vector.h"

constexpr int PANEL = 64;
constexpr int ROWS = 6;  // Of a tile: ROWS x TILE sums fit the registers.

constexpr int padded(int n) { return (n + PANEL - 1) / PANEL * PANEL; }

// Two neighbours along the axis that a product sums over, bfloat16 each: the
// earlier one in the low half.
using Pair = uint32_t;

// acc += x w: of floats, of pairs that are widened to float32, and of pairs
// with x rounded to bfloat16, too: twice the products a cycle.
INLINE void add(vec& acc, const float* x, vec w) { acc += *x * w; }
INLINE void add(vec& acc, const float* x, uvec w) {
  acc += x[0] * (vec)(w << 16);
  acc += x[1] * (vec)(w & 0xFFFF0000u);
}
#if defined(__AVX512BF16__)
INLINE void add(vec& acc, const Pair* x, uvec w) {
  __m512bh both = (__m512bh)(uvec{} + *x);
  acc = (vec)_mm512_dpbf16_ps((__m512)acc, both, (__m512bh)w);
}
#endif

// put(r, c, sums) for each row r of x and W columns from c on of w, the sums
// of `depth` rows of w, ldw apart; `columns` is a multiple of W. AHEAD: also
// asks for what lies `ahead` elements of w further on. The processor itself
// stops asking at the end of each 4 KB. TALL: x has its rows as columns. Not
// inlined: in a larger function the compiler keeps sums in memory.
template <bool AHEAD = false, bool TALL = false, class X, class E, class F>
[[gnu::noinline]] static void product(const X* x, int ldx, int rows, const E* w,
    int ldw, int depth, int columns, const F& put, size_t ahead = 0) {
  constexpr int STEP = std::is_same_v<X, E> ? 1 : 2;
  int row = 0;
  auto tile = [&](auto r_count, auto c_count, int column) INLINED {
    constexpr int R = r_count, C = c_count;
    vec acc[R][C] = {};
    for (int i = 0; i < depth; i++) {
      decltype(load(w)) words[C];
      unroll<C>(EACH(c) {
        const E* p = w + (size_t)i * ldw + column + W * c;
        words[c] = load(p);
        if constexpr (AHEAD) __builtin_prefetch(p + ahead, 0, 2);
      });
      unroll<R>(EACH(r) {
        const X* p = TALL ? x + (size_t)i * ldx + row + r
                          : x + (size_t)(row + r) * ldx + STEP * i;
        unroll<C>(EACH(c) { add(acc[r][c], p, words[c]); });
      });
    }
    unroll<R>(EACH(r) {
      unroll<C>(EACH(c) { put(row + r, column + W * c, acc[r][c]); });
    });
  };
  auto tiles = [&](auto r_count) INLINED {
    // One row has registers for more columns, and streams through whole lines.
    constexpr int R = r_count, WIDE = R > 1 || PANEL / W < 8 ? TILE : 8;
    int c = 0;
    for (; c + W * WIDE <= columns; c += W * WIDE)
      tile(r_count, Int<WIDE>{}, c);
    for (; c + W * 2 <= columns; c += W * 2) tile(r_count, Int<2>{}, c);
    if (c < columns) tile(r_count, Int<1>{}, c);
    row += R;
  };
  while (row + ROWS <= rows) tiles(Int<ROWS>{});
  if (row + 4 <= rows) tiles(Int<4>{});
  if (row + 2 <= rows) tiles(Int<2>{});
  if (row < rows) tiles(Int<1>{});
}

// A matrix [in, out] in panels of floats or of pairs. A row more in each panel
// is the bias, in floats.
struct Matrix {
  const uint32_t* panels;
  int in, out;
  int pairs, rounded;  // Pairs times x rounded to bfloat16, not x as it is.
  int count() const { return padded(out) / PANEL; }
  int depth() const { return pairs ? in / 2 : in; }
  size_t size() const { return (size_t)(depth() + 1) * PANEL; }
};

// What follows a product; the first ones in the order of config.MLPS.
enum class Then { RELU2, RELU, GELU, STORE, ADD };

// Rows of floats, with room for whole panels.
struct Rows {
  std::vector<float> data;
  int ld = 0;
  void resize(int rows, int columns) {
    ld = padded(columns);
    data.resize(std::max(data.size(), (size_t)rows * ld));
  }
  float* operator[](int r) { return &data[(size_t)r * ld]; }
};

// y = then(x @ m + bias), or += with Then::ADD.
static void linear(Rows& x, int rows, const Matrix& m, Rows& y, Then then,
                   int threads) {
  // Small products take less time than waking a thread.
  if ((size_t)rows * m.in * m.out < 1 << 14) threads = 1;
  // Pieces for all threads; one row's are whole panels, which are read faster.
  int parts = 1, chunk = rows, few = rows > 1 ? 4 * threads : threads;
  while (parts < PANEL / (2 * W) && m.count() * parts < few) parts *= 2;
  if (m.count() * parts < few) chunk = std::min(rows, 4 * ROWS);
  int chunks = (rows + chunk - 1) / chunk, width = PANEL / parts;
  auto pieces = [&](const auto* x, int ldx, const auto* panels) {
    pool->run(m.count() * parts * chunks, threads, [&](int i) {
      int part = i % parts, panel = i / parts / chunks, depth = m.depth();
      int r0 = i / parts % chunks * chunk, c0 = panel * PANEL + part * width;
      int n = std::min(chunk, rows - r0);
      int columns = std::min(whole(m.out - c0), width);
      auto from = x + (size_t)r0 * ldx;
      auto w = panels + panel * m.size() + part * width;
      auto bias = (const float*)(w + depth * PANEL);
      auto put = [&](int r, int c, vec sum) {
        float* to = y[r0 + r] + c0 + c;
        sum += load(bias + c);
        switch (then) {
          case Then::RELU2: sum = sum > 0 ? sum * sum : vec{}; break;
          case Then::RELU: sum = sum > 0 ? sum : vec{}; break;
          case Then::GELU: sum = gelu(sum); break;
          case Then::STORE: break;
          case Then::ADD: sum += load(to); break;
        }
        store(to, sum);
      };
      // One row streams as fast as memory; more compute while the next panel
      // comes.
      if (n == 1) product(from, ldx, n, w, PANEL, depth, columns, put);
      else product<true>(from, ldx, n, w, PANEL, depth, columns, put, m.size());
    });
  };
  if (!m.pairs) return pieces(x[0], x.ld, (const float*)m.panels);
#if defined(__AVX512BF16__)
  if (m.rounded) {
    thread_local std::vector<Pair> rounded;
    int n = m.in / 2;
    rounded.resize((size_t)rows * n);
    for (int r = 0; r < rows; r++)
      for (int i = 0; i < n; i++)
        rounded[(size_t)r * n + i] = pair_of(x[r][2 * i], x[r][2 * i + 1]);
    return pieces(rounded.data(), n, m.panels);
  }
#endif
  pieces(x[0], x.ld, m.panels);
}
