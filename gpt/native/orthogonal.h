// The Newton-Schulz iterations of Muon (gpt/training/muon.py).
//
// With G = X X^T the iteration (a I + b G + c G^2) X is a polynomial of G times
// X: its steps are products n x n, all of them symmetric, as everything
// commutes with G. Half of their sums are enough, and X is read twice only.
#pragma once
#include "gradient.h"

class Orthogonal {
 public:
  // out = x with its singular values moved to about 1; both [n][m], n <= m.
  void run(const float* x, int n, int m, int steps, const float* abc,
           float* out) {
    n_ = n, size_ = (size_t)strips(n) * S * n;
    float* X = room_.get((size_t)strips(n) * S * m + 4 * size_);
    G_ = X + (size_t)strips(n) * S * m;
    P_ = G_ + size_, Q_ = P_ + size_, spare_ = Q_ + size_;

    double squares = 0;
    for (int r = 0; r < n; r++) {
      const float* row = x + (size_t)r * m;
      squares += dot(row, row, m);
    }
    float scale = 1 / ((float)std::sqrt(squares) + 1e-7f);
    for (int r = 0; r < n; r += S)
      transpose(x + (size_t)r * m, m, std::min(S, n - r), m,
                X + (size_t)r * m, S);
    symmetric(X, X, m, G_, [=](size_t, vec sum) { return sum * scale * scale; });
    for (int step = 0; step < steps; step++) iterate(abc, step, steps);

    const float* right = in_strips<S>(x, n, m, strips_room_);
    for (int c0 = 0; c0 < m; c0 += S)
      for (int r0 = 0; r0 < n; r0 += S)
        product<false, true>(
            Q_ + (size_t)r0 * n, S, std::min(S, n - r0),
            right + (size_t)c0 * n, S, n, std::min(S, whole(m - c0)),
            [&](int r, int c, vec sum) {
              float* to = out + (size_t)(r0 + r) * m + c0 + c;
              sum *= scale;
              if (c0 + c + W <= m) store(to, sum);
              else memcpy(to, &sum, 4 * (m - c0 - c));
            });
  }

 private:
  // Matrices lie in strips of S columns, row after row: [n / S][rows][S].
  static constexpr int S = 2 * W;
  static int strips(int n) { return (n + S - 1) / S; }

  // P = a I + b G + c G^2;  Q = P Q;  G = P G P.
  void iterate(const float* abc, int step, int steps) {
    symmetric(G_, G_, n_, P_, [=](size_t at, vec sum) {
      return abc[2] * sum + abc[1] * load(G_ + at);
    });
    for (int i = 0; i < n_; i++)
      P_[(size_t)(i / S * n_ + i) * S + i % S] += abc[0];
    if (step == 0) memcpy(Q_, P_, 4 * size_);
    else times(P_, Q_);
    if (step + 1 < steps) times(P_, G_), times(P_, G_);
  }

  // y = x y.
  void times(const float* x, float*& y) {
    symmetric(x, y, n_, spare_, [](size_t, vec sum) { return sum; });
    std::swap(y, spare_);
  }

  // out = f(x^T y), which is symmetric: the lower triangle and its image.
  template <class F>
  void symmetric(const float* x, const float* y, int depth, float* out,
                 const F& f) {
    for (int r0 = 0; r0 < n_; r0 += S) {
      int count = std::min(S, n_ - r0);
      for (int c0 = 0; c0 <= r0; c0 += S) {
        size_t at = ((size_t)c0 * n_ + (size_t)r0 * S);
        product<false, true>(x + (size_t)r0 * depth, S, count,
                             y + (size_t)c0 * depth, S, depth, S,
                             [&](int r, int c, vec sum) {
                               size_t i = at + (size_t)r * S + c;
                               store(out + i, f(i, sum));
                             });
        if (c0 < r0)
          transpose(out + at, S, count, S,
                    out + (size_t)r0 * n_ + (size_t)c0 * S, S);
        for (int r = 0; c0 == r0 && r < count; r++)
          for (int c = 0; c < r; c++) out[at + c * S + r] = out[at + r * S + c];
      }
    }
  }

  int n_ = 0;
  size_t size_ = 0;  // Of a matrix n x n.
  float *G_, *P_, *Q_, *spare_;
  Room<float> room_, strips_room_;
};
