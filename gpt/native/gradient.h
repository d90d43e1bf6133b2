// The gradient of a matrix: x^T dy, summed over the rows of both.
#pragma once
#include "words.h"

// Words across the rows of x[n][m].
template <class E>
static const E* across_rows(const float* x, int n, int m, Room<E>& room) {
  constexpr int S = NUMBERS<E>;
  if constexpr (S == 1) return x;
  E* out = room.get((size_t)words<E>(n) * m);
  for (int i = 0; i < n; i += S) {
    const float* from = x + (size_t)i * m;
    across(from, i + 1 < n ? from + m : nullptr, m, out + (size_t)(i / S) * m);
  }
  return out;
}

// The same in panels of columns: [m / PANEL][words(n)][PANEL].
template <class E>
static const E* panels_across(const float* y, int n, int m, Room<E>& room) {
  constexpr int S = NUMBERS<E>;
  E* out = room.get((size_t)words<E>(n) * padded(m));
  for (int c = 0; c < m; c += PANEL) {
    E* to = out + (size_t)words<E>(n) * c;
    for (int i = 0; i < n; i += S, to += PANEL) {
      const float* from = y + (size_t)i * m + c;
      across(from, i + 1 < n ? from + m : nullptr, std::min(PANEL, m - c), to);
    }
  }
  return out;
}

// out[rows][columns] = x[n][rows]^T y[n][columns].
template <class E>
static void gradient(const float* x, const float* y, int n, int rows,
                     int columns, float* out, int threads) {
  thread_local Room<E> x_room, y_room;
  const E *left = across_rows(x, n, rows, x_room),
          *right = panels_across(y, n, columns, y_room);
  // A block of rows of x^T stays in the L2 cache.
  int depth = words<E>(n);
  int block = (1 << 16) / std::max(depth, 1) / ROWS * ROWS;
  block = std::min(block, ((rows - 1) / threads / ROWS + 1) * ROWS);
  block = std::max(block, ROWS);
  pool->run((rows + block - 1) / block, threads, [&](int i) {
    thread_local Room<float> room;
    int r0 = i * block, count = std::min(block, rows - r0);
    for (int c0 = 0; c0 < columns; c0 += PANEL) {
      int some = std::min(PANEL, whole(columns - c0));
      // Rows that do not end with a whole vector take a detour.
      bool direct = c0 + some <= columns;
      int ld = direct ? columns : PANEL;
      float* to = direct ? out + (size_t)r0 * columns + c0
                         : room.get((size_t)count * PANEL);
      product<false, true>(left + r0, rows, count, right + (size_t)depth * c0,
                           PANEL, depth, some, [&](int r, int c, vec sum) {
                             store(to + (size_t)r * ld + c, sum);
                           });
      for (int r = 0; !direct && r < count; r++)
        memcpy(out + (size_t)(r0 + r) * columns + c0, to + (size_t)r * ld,
               4 * (columns - c0));
    }
  });
}
