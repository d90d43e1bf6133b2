// Products of a few rows with a matrix that is stored in panels.
//
// A panel is 64 columns of a matrix [in, out], row after row: float[in][64],
// or, in bfloat16, Pair[in / 2][64]. A tile is some rows times TILE vectors of
// a panel's columns. Each sum runs over `in` in order, in one register: the
// result for a row does not depend on which rows it shares a tile with.
#pragma once
#include "pool.h"
#include "vector.h"

constexpr int PANEL = 64;
constexpr int ROWS = 6;  // Of a tile: ROWS x TILE sums fit the registers.

// acc[r][c] += x[r][i] * w[i][c] for all i. ldw: columns between two rows.
template <bool AHEAD, int R, int C>
INLINE void accumulate(vec (&acc)[R][C], const float* x, int ldx,
                       const float* w, int ldw, int in, size_t ahead) {
  for (int i = 0; i < in; i++) {
    vec wi[C];
    unroll<C>(EACH(c) {
      const float* p = w + (size_t)i * ldw + W * c;
      wi[c] = load(p);
      if constexpr (AHEAD) __builtin_prefetch(p + ahead, 0, 2);
    });
    unroll<R>(EACH(r) {
      float xi = x[(size_t)r * ldx + i];
      unroll<C>(EACH(c) { acc[r][c] += xi * wi[c]; });
    });
  }
}

// The same for pairs, widened to float32. x is padded with 0 to an even length.
template <bool AHEAD, int R, int C>
INLINE void accumulate(vec (&acc)[R][C], const float* x, int ldx,
                       const Pair* w, int ldw, int in, size_t ahead) {
  for (int i = 0; i < in; i += 2) {
    vec low[C], high[C];
    unroll<C>(EACH(c) {
      const Pair* p = w + (size_t)(i / 2) * ldw + W * c;
      uvec pair = *(const uvec*)p;
      if constexpr (AHEAD) __builtin_prefetch(p + ahead, 0, 2);
      low[c] = (vec)(pair << 16), high[c] = (vec)(pair & 0xFFFF0000u);
    });
    unroll<R>(EACH(r) {
      float x0 = x[(size_t)r * ldx + i], x1 = x[(size_t)r * ldx + i + 1];
      unroll<C>(EACH(c) {
        acc[r][c] += x0 * low[c];
        acc[r][c] += x1 * high[c];
      });
    });
  }
}

#if defined(__AVX512BF16__)
// The same with x rounded to bfloat16, too: twice the products a cycle.
template <bool AHEAD, int R, int C>
INLINE void accumulate(vec (&acc)[R][C], const Pair* x, int ldx,
                       const Pair* w, int ldw, int in, size_t ahead) {
  for (int i = 0; i < (in + 1) / 2; i++) {
    __m512i wi[C];
    unroll<C>(EACH(c) {
      const Pair* p = w + (size_t)i * ldw + W * c;
      wi[c] = _mm512_loadu_si512(p);
      if constexpr (AHEAD) __builtin_prefetch(p + ahead, 0, 2);
    });
    unroll<R>(EACH(r) {
      __m512i xi = _mm512_set1_epi32(x[(size_t)r * ldx + i].bits);
      unroll<C>(EACH(c) {
        acc[r][c] = (vec)_mm512_dpbf16_ps((__m512)acc[r][c], (__m512bh)xi,
                                          (__m512bh)wi[c]);
      });
    });
  }
}
#endif

// put(r, c, vec): sums of `rows` rows of x with columns 0 .. columns of w, W
// columns at a time; `columns` is a multiple of W.
template <bool AHEAD, int R, class X, class E, class F>
INLINE void tile_columns(const X* x, int ldx, const E* w, int ldw, int in,
                         int columns, int row, const F& put, size_t ahead) {
  // One row has registers for more columns, and streams through whole lines.
  constexpr int WIDE = R > 1 || PANEL / W < 8 ? TILE : 8;
  int c = 0;
  for (; c + W * WIDE <= columns; c += W * WIDE) {
    vec acc[R][WIDE] = {};
    accumulate<AHEAD, R, WIDE>(acc, x, ldx, w + c, ldw, in, ahead);
    unroll<R>(EACH(r) {
      unroll<WIDE>(EACH(j) { put(row + r, c + W * j, acc[r][j]); });
    });
  }
  for (; TILE > 2 && c + 2 * W <= columns; c += 2 * W) {
    vec acc[R][2] = {};
    accumulate<AHEAD, R, 2>(acc, x, ldx, w + c, ldw, in, ahead);
    unroll<R>(EACH(r) {
      unroll<2>(EACH(j) { put(row + r, c + W * j, acc[r][j]); });
    });
  }
  for (; c < columns; c += W) {
    vec acc[R][1] = {};
    accumulate<AHEAD, R, 1>(acc, x, ldx, w + c, ldw, in, ahead);
    unroll<R>(EACH(r) { put(row + r, c, acc[r][0]); });
  }
}

// AHEAD: also ask for what lies `ahead` elements of w further on. The processor
// itself stops asking at the end of each 4 KB.
template <bool AHEAD = false, class X, class E, class F>
static void product(const X* x, int ldx, int rows, const E* w, int ldw, int in,
                    int columns, const F& put, size_t ahead = 0) {
  int r = 0;
  auto tile = [&](auto count) __attribute__((always_inline)) {
    tile_columns<AHEAD, decltype(count)::value>(x + (size_t)r * ldx, ldx, w,
                                                ldw, in, columns, r, put,
                                                ahead);
  };
  for (; r + ROWS <= rows; r += ROWS) tile(Int<ROWS>{});
  if (r + 4 <= rows) tile(Int<4>{}), r += 4;
  if (r + 2 <= rows) tile(Int<2>{}), r += 2;
  if (r < rows) tile(Int<1>{});
}

// A matrix [in, out] in panels of floats or of pairs, and its bias or null.
struct Matrix {
  const void* panels;
  const float* bias;
  int in, out;
  bool pairs, rounded;  // Pairs times x rounded to bfloat16, not x as it is.
  int count() const { return (out + PANEL - 1) / PANEL; }
  size_t size() const { return (size_t)(pairs ? (in + 1) / 2 : in) * PANEL; }
};

enum class Then { STORE, ADD, RELU, RELU2, GELU };

template <class X, class E>
static void linear_of(const X* x, int ldx, int rows, const Matrix& m, float* y,
                      int ldy, Then then, int threads) {
  // Small products take less time than waking a thread.
  if ((size_t)rows * m.in * m.out < 1 << 14) threads = 1;
  // Pieces for all threads; one row's are whole panels, which are read faster.
  int parts = 1, chunk = rows, few = rows > 1 ? 4 * threads : threads;
  while (parts < PANEL / (2 * W) && m.count() * parts < few) parts *= 2;
  if (m.count() * parts < few) chunk = std::min(rows, 4 * ROWS);
  int chunks = (rows + chunk - 1) / chunk, width = PANEL / parts;
  Pool::get().run(m.count() * parts * chunks, threads, [&](int i) {
    int part = i % parts, panel = i / parts / chunks;
    int r0 = i / parts % chunks * chunk, c0 = panel * PANEL + part * width;
    int columns = std::min((m.out - c0 + W - 1) / W * W, width);
    if (columns <= 0) return;
    const E* w = (const E*)m.panels + panel * m.size() + part * width;
    const X* from = x + (size_t)r0 * ldx;
    int count = std::min(chunk, rows - r0);
    auto put = [&](int r, int c, vec sum) {
      float* to = y + (size_t)(r0 + r) * ldy + c0 + c;
      if (m.bias) sum += load(m.bias + c0 + c);
      switch (then) {
        case Then::STORE: break;
        case Then::ADD: sum += load(to); break;
        case Then::RELU: sum = sum > 0 ? sum : vec{}; break;
        case Then::RELU2: sum = sum > 0 ? sum * sum : vec{}; break;
        case Then::GELU: sum = gelu(sum); break;
      }
      store(to, sum);
    };
    // One row streams as fast as memory; more compute while the next panel
    // comes.
    if (count == 1) product(from, ldx, 1, w, PANEL, m.in, columns, put);
    else product<true>(from, ldx, count, w, PANEL, m.in, columns, put, m.size());
  });
}

// y[rows][ldy] = f(x @ m + bias), or += with Then::ADD. Rows of y have room
// for whole panels.
static void linear(const float* x, int ldx, int rows, const Matrix& m, float* y,
                   int ldy, Then then, int threads) {
#if defined(__AVX512BF16__)
  if (m.rounded) {
    thread_local std::vector<Pair> room;
    int pairs = (m.in + 1) / 2;
    room.resize((size_t)rows * pairs);
    for (int r = 0; r < rows; r++)
      for (int i = 0; i < pairs; i++) {
        const float* from = x + (size_t)r * ldx + 2 * i;
        room[(size_t)r * pairs + i] = {to_bf16(from[0]) |
                                       to_bf16(from[1]) << 16};
      }
    linear_of<Pair, Pair>(room.data(), pairs, rows, m, y, ldy, then, threads);
    return;
  }
#endif
  if (m.pairs) linear_of<float, Pair>(x, ldx, rows, m, y, ldy, then, threads);
  else linear_of<float, float>(x, ldx, rows, m, y, ldy, then, threads);
}
