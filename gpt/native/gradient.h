// The gradient of a matrix: x^T dy, summed over the rows of both.
#pragma once
#include "words.h"

// Rows of a strip that stay in the L1 cache; those of AVX-512 do not.
constexpr int DEPTH = STRIP < 64 ? 256 : 1 << 30;

// Words across the rows of x[n][m], in strips of columns:
// [m / WIDTH][words(n)][WIDTH].
template <int WIDTH, class E>
static const E* in_strips(const float* x, int n, int m, Room<E>& room) {
  constexpr int S = NUMBERS<E>, SOME = 16;  // Words that are moved at a time.
  thread_local Room<E> lines;
  int depth = words<E>(n), ld = (m + WIDTH - 1) / WIDTH * WIDTH;
  E *out = room.get((size_t)depth * ld), *line = lines.get((size_t)SOME * ld);
  for (int i0 = 0; i0 < depth; i0 += SOME) {
    int some = std::min(SOME, depth - i0);
    for (int i = 0; i < some; i++) {
      int row = (i0 + i) * S;
      const float* from = x + (size_t)row * m;
      across(from, row + 1 < n ? from + m : nullptr, m, line + (size_t)i * ld);
    }
    for (int c = 0; c < ld; c += WIDTH)
      for (int i = 0; i < some; i++)
        memcpy(out + (size_t)depth * c + (size_t)(i0 + i) * WIDTH,
               line + (size_t)i * ld + c, WIDTH * sizeof(E));
  }
  return out;
}

// out[rows][columns] = x[n][rows]^T y[n][columns].
template <class E>
static void gradient(const float* x, const float* y, int n, int rows,
                     int columns, float* out, int threads) {
  thread_local Room<E> x_room, y_room;
  const E *left = in_strips<ROWS>(x, n, rows, x_room),
          *right = in_strips<STRIP>(y, n, columns, y_room);
  // A block of rows of x^T stays in the L2 cache.
  int depth = words<E>(n);
  int block = (1 << 16) / std::max(depth, 1) / ROWS * ROWS;
  block = std::min(block, ((rows - 1) / threads / ROWS + 1) * ROWS);
  block = std::max(block, ROWS);
  pool->run((rows + block - 1) / block, threads, [&](int i) {
    thread_local Room<float> room;
    int r0 = i * block, count = std::min(block, rows - r0);
    for (int c0 = 0; c0 < columns; c0 += STRIP) {
      int some = std::min(STRIP, whole(columns - c0));
      // Rows that do not end with a whole vector take a detour.
      bool direct = c0 + some <= columns;
      int ld = direct ? columns : STRIP;
      float* to = direct ? out + (size_t)r0 * columns + c0
                         : room.get((size_t)count * STRIP);
      for (int d = 0; d == 0 || d < depth; d += DEPTH)
        for (int tile = 0; tile < count; tile += ROWS)
          product<false, true>(
              left + (size_t)(r0 + tile) * depth + d * ROWS, ROWS,
              std::min(ROWS, count - tile),
              right + (size_t)depth * c0 + (size_t)d * STRIP, STRIP,
              std::min(DEPTH, depth - d), some, [&](int r, int c, vec sum) {
                float* at = to + (size_t)(tile + r) * ld + c;
                store(at, d ? load(at) + sum : sum);
              });
      for (int r = 0; !direct && r < count; r++)
        memcpy(out + (size_t)(r0 + r) * columns + c0, to + (size_t)r * ld,
               4 * (columns - c0));
    }
  });
}
