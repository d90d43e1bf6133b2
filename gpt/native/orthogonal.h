// The Newton-Schulz iterations of Muon (gpt/training/muon.py).
//
// With G = X^T X the iteration X (a I + b G + c G^2) is a polynomial of G times
// X: its steps are products n x n, all of them symmetric, as everything
// commutes with G. Half of their sums are enough, and X is read twice only.
#pragma once
#include "words.h"

class Orthogonal {
 public:
  // out = x with its singular values moved to about 1; both [rows][columns].
  void run(const float* x, int rows, int columns, int steps, const float* abc,
           float* out) {
    bool tall = rows >= columns;
    int m = std::max(rows, columns);
    n_ = std::min(rows, columns), size_ = (size_t)strips(n_) * S * n_;
    float* X = room_.get((size_t)strips(m) * S * strips(n_) * S + 4 * size_);
    G_ = X + (size_t)strips(m) * S * strips(n_) * S;
    P_ = G_ + size_, Q_ = P_ + size_, spare_ = Q_ + size_;

    double squares = 0;
    for (int r = 0; r < rows; r++)
      squares += norm2(x + (size_t)r * columns, columns);
    float scale = 1 / ((float)std::sqrt(squares) + 1e-7f);
    if (tall) cut(x, m, n_, X);
    else
      for (int c = 0; c < n_; c += S)
        transpose(x + (size_t)c * m, m, std::min(S, n_ - c), m,
                  X + (size_t)c * m, S);
    symmetric(X, X, m, G_, [=](size_t, vec sum) { return sum * scale * scale; });
    for (int step = 0; step < steps; step++) iterate(abc, step, steps);

    // X Q, or Q X.
    if (!tall) cut(x, n_, m, X);
    for (int c0 = 0; c0 < columns; c0 += S) {
      int width = std::min(S, whole(columns - c0));
      auto put = [&](int r, int c, vec sum) {
        float* to = out + (size_t)r * columns + c0 + c;
        sum *= scale;
        if (c0 + c + W <= columns) store(to, sum);
        else memcpy(to, &sum, 4 * (columns - c0 - c));
      };
      if (tall)
        product(x, n_, m, Q_ + (size_t)c0 * n_, S, n_, width, put);
      for (int r0 = 0; !tall && r0 < n_; r0 += S)
        product<false, true>(
            Q_ + (size_t)r0 * n_, S, std::min(S, n_ - r0),
            X + (size_t)c0 * n_, S, n_, width,
            [&](int r, int c, vec sum) { put(r0 + r, c, sum); });
    }
  }

 private:
  // Matrices lie in strips of S columns, row after row: [n / S][rows][S].
  static constexpr int S = 2 * W;
  static int strips(int n) { return (n + S - 1) / S; }

  static float norm2(const float* p, int n) {
    vec sums{};
    int i = 0;
    for (; i + W <= n; i += W) sums += load(p + i) * load(p + i);
    float rest = sum(sums);
    for (; i < n; i++) rest += p[i] * p[i];
    return rest;
  }

  static void cut(const float* x, int rows, int columns, float* out) {
    for (int c = 0; c < columns; c += S)
      for (int r = 0; r < rows; r++)
        memcpy(out + (size_t)c * rows + (size_t)r * S,
               x + (size_t)r * columns + c, 4 * std::min(S, columns - c));
  }

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
  Room<float> room_;
};
