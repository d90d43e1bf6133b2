// The kernels as targets of XLA's foreign function interface. calls.py has the
// same operands in the same order.
#include "network.h"
#include "sampling.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using Args = ffi::RemainingArgs;
using Rets = ffi::RemainingRets;

// The data of an operand, or null if it is empty: the model does without it.
template <class T>
static T* data(const Args& args, int i) {
  ffi::AnyBuffer b = *args.get<ffi::AnyBuffer>(i);
  return b.element_count() ? (T*)b.untyped_data() : nullptr;
}
template <class T>
static T* data(const Rets& rets, int i) {
  return (T*)(*rets.get<ffi::AnyBuffer>(i))->untyped_data();
}
static ffi::DataType type(const Args& args, int i) {
  return (*args.get<ffi::AnyBuffer>(i)).element_type();
}

constexpr int WEIGHTS = 23;  // Operands; those of the cache follow.

static Weights weights_of(const Shape& m, bool rounded, const Args& a, int at) {
  auto norm = [&](int i) {
    return Norm{data<float>(a, at + i), data<float>(a, at + i + 1)};
  };
  auto matrix = [&](int i, int in, int out) {
    bool pairs = type(a, at + i) == ffi::DataType::U32;
    return Matrix{data<void>(a, at + i), data<float>(a, at + i + 1), in, out,
                  pairs, pairs && rounded};
  };
  return {data<void>(a, at), data<void>(a, at + 1),
          type(a, at) == ffi::DataType::BF16, data<float>(a, at + 2),
          norm(3), norm(5), norm(7), norm(9),
          Norm{data<float>(a, at + 11), nullptr},
          Norm{data<float>(a, at + 12), nullptr},
          matrix(13, m.D, m.E()), matrix(15, m.H * m.K, m.D),
          matrix(17, m.D, m.up()), matrix(19, m.F, m.D),
          matrix(21, m.D, m.V)};
}

// The network of the operands from `at` on; its cache is changed in place, as
// results `ret` and `ret` + 1.
static Network& network(ffi::Span<const int32_t> d, ffi::Span<const float> f,
                        const Args& a, int at, const Rets& rets, int ret) {
  thread_local Network net;
  Shape& m = net.m;
  m.D = d[0], m.H = d[1], m.G = d[2], m.K = d[3], m.F = d[4], m.V = d[5];
  m.N = d[6], m.T = d[7], m.mlp = (Mlp)d[8], m.rope = d[9];
  m.layer_norm = d[10], m.qk_norm = d[11], m.embed_norm = d[12];
  m.final_norm = d[13], m.threads = d[15], m.eps = f[0], m.soft_cap = f[1];
  net.w = weights_of(m, d[14], a, at);
  int k = at + WEIGHTS, v = k + 1;
  auto s = (*a.get<ffi::AnyBuffer>(v)).dimensions();  // [slots, N, G, S, K]
  bool pairs = type(a, v) == ffi::DataType::U32;
  net.cache = {data<void>(rets, ret), data<void>(rets, ret + 1), pairs,
               (int)s[1], (int)s[2], (int)s[3] * (pairs ? 2 : 1), (int)s[4]};
  return net;
}

// Whether result `ret` is operand `arg`, changed in place.
static bool same(const Args& args, int arg, const Rets& rets, int ret) {
  return data<void>(args, arg) == data<void>(rets, ret);
}

// Tokens at the positions from `first` on of one slot.
//   control: int32[3] slot, first, count; tokens: int32[L]; tokens of the
//   columns: int32[slots, S]; weights; cache
//   -> float32[L, D] hidden states, [L, V] logits or [0]; tokens; cache
static ffi::Error fill(Args a, Rets rets, ffi::Span<const int32_t> dims,
                       ffi::Span<const float> numbers) {
  const int *control = data<int>(a, 0), *token = data<int>(a, 1);
  int slot = control[0], first = control[1], count = control[2];
  ffi::AnyBuffer ret = **rets.get<ffi::AnyBuffer>(0);
  float* out = ret.element_count() ? (float*)ret.untyped_data() : nullptr;
  size_t width = out ? ret.dimensions()[1] : 0;
  if (!same(a, 2, rets, 1) || !same(a, 3 + WEIGHTS, rets, 2) ||
      !same(a, 4 + WEIGHTS, rets, 3))
    return ffi::Error(ffi::ErrorCode::kInternal, "the state is a copy");
  Network& net = network(dims, numbers, a, 3, rets, 2);
  int* columns = data<int>(rets, 1) + (size_t)slot * net.cache.S;
  int slots[CHUNK], pos[CHUNK];
  for (int done = 0; done < count; done += CHUNK) {
    int rows = std::min(CHUNK, count - done);
    for (int r = 0; r < rows; r++) {
      slots[r] = slot;
      pos[r] = std::min(first + done + r, net.cache.S - 1);
      columns[pos[r]] = token[done + r];
    }
    net.layers(token + done, slots, pos, rows);
    if (!out) continue;
    const float* from = dims[16] ? net.logits(rows) : net.h.data();
    for (int r = 0; r < rows; r++)
      memcpy(out + (done + r) * width, from + r * (size_t)padded(width),
             4 * width);
  }
  return ffi::Error::Success();
}

// What may follow the tokens of columns 0 .. n: up to `most` that followed the
// last few tokens where they occurred before. Returns how many.
static int draft(const int* tokens, int n, int most, int* out) {
  constexpr int SAME = 3;
  for (int end = n - 1; end >= SAME - 1; end--) {
    int same = 0;
    while (same < SAME && tokens[end - same] == tokens[n - same]) same++;
    if (same < SAME) continue;
    most = std::min(most, n - end);
    std::copy(tokens + end + 1, tokens + end + 1 + most, out);
    return most;
  }
  return 0;
}

// Decode steps with sampling, as blocks.decode_block.
//   control: int32[4] rows, steps, draft, whether logits are wanted;
//   slot, last, length, step: int32[B]; seed: uint32[slots]; settings:
//   float32[slots, 7]; in_prompt: bool[slots, V]; counts: int32[slots, V];
//   bias: float32[slots, V]; tokens of the columns: int32[slots, S]; weights;
//   cache
//   -> int32[B, k] tokens, float32[B, k, V] logits, counts, tokens, cache
//
// A single row may try up to `draft` drafted tokens in one pass. Each token is
// the one that its own logits and random number give, drafted or not: a pass
// ends where a draft was wrong. The text is the same; it only comes sooner.
static ffi::Error decode(Args a, Rets rets, ffi::Span<const int32_t> dims,
                         ffi::Span<const float> numbers) {
  const int* control = data<int>(a, 0);
  const int *slot = data<int>(a, 1), *last = data<int>(a, 2);
  const int *length = data<int>(a, 3), *step = data<int>(a, 4);
  const uint32_t* seed = data<uint32_t>(a, 5);
  const float *settings = data<float>(a, 6), *bias = data<float>(a, 9);
  const bool* in_prompt = data<bool>(a, 7);
  ffi::AnyBuffer ret = **rets.get<ffi::AnyBuffer>(0);
  int most = ret.dimensions()[1];
  int rows = control[0], steps = std::min(control[1], most);
  int *out = data<int>(rets, 0), *counts = data<int>(rets, 2);
  int* columns = data<int>(rets, 3);
  float* all_logits = data<float>(rets, 1);
  if (!same(a, 8, rets, 2) || !same(a, 10, rets, 3) ||
      !same(a, 11 + WEIGHTS, rets, 4) || !same(a, 12 + WEIGHTS, rets, 5))
    return ffi::Error(ffi::ErrorCode::kInternal, "the state is a copy");
  Network& net = network(dims, numbers, a, 11, rets, 4);
  const Shape& m = net.m;
  int S = net.cache.S;
  // Token i of a row from its logits, which are overwritten.
  auto choose = [&](int row, int i, float* p) {
    size_t at = (size_t)slot[row] * m.V, to = (size_t)row * most + i;
    // New pages cost more than the copy: not for nothing.
    if (control[3]) memcpy(all_logits + to * m.V, p, 4 * (size_t)m.V);
    Sampling s;
    memcpy(&s, settings + 7 * slot[row], 7 * sizeof(float));
    int token = sample(p, m.V, s, uniform(seed[slot[row]], step[row] + i),
                       in_prompt + at, counts + at, bias + at);
    if (length[row] + i < m.T) counts[at + token]++;
    return out[to] = token;
  };
  int token[CHUNK], pos[CHUNK], slots[CHUNK];
  for (int from = 0; from < rows; from += CHUNK) {
    int count = std::min(CHUNK, rows - from);
    std::copy(last + from, last + from + count, token);
    for (int i = 0; i < steps;) {
      int tried = 0;
      for (int r = 0; r < count; r++) {
        slots[r] = slot[from + r];
        pos[r] = std::min(length[from + r] + i, S - 1);
        columns[(size_t)slots[r] * S + pos[r]] = token[r];
      }
      if (rows == 1 && net.drafts_pay()) {
        int room = std::min({control[2], steps - i - 1, S - 1 - pos[0]});
        tried = draft(columns + (size_t)slots[0] * S, pos[0], room, token + 1);
        for (int r = 1; r <= tried; r++)
          slots[r] = slots[0], pos[r] = pos[0] + r;
      }
      net.layers(token, slots, pos, count + tried);
      float* scores = net.logits(count + tried);
      if (!tried) {
        Pool::get().run(count, m.threads, [&](int r) {
          token[r] = choose(from + r, i, scores + (size_t)r * padded(m.V));
        });
        i++;
        continue;
      }
      int right = 0;
      for (;; right++) {
        int next = choose(0, i++, scores + (size_t)right * padded(m.V));
        if (right == tried || next != token[right + 1]) {
          token[0] = next;
          break;
        }
        columns[(size_t)slots[0] * S + pos[right + 1]] = next;
      }
      net.note_drafts(right);
    }
  }
  return ffi::Error::Success();
}

#define TARGET(name, function)                                 \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(                               \
      name, function,                                          \
      ffi::Ffi::Bind().RemainingArgs().RemainingRets()         \
          .Attr<ffi::Span<const int32_t>>("dims")              \
          .Attr<ffi::Span<const float>>("numbers"))
// Called in a process of its own after compiling: can this processor run it?
extern "C" int rgpt_probe() {
  float x[PANEL] = {}, y[PANEL];
  std::vector<float> w(PANEL * 2, 1.0f);
  x[0] = x[1] = 1;
  linear(x, 2, 1, {w.data(), nullptr, 2, PANEL, false, false}, y, PANEL,
         Then::GELU, 2);
  return (int)y[0];
}

TARGET(rgpt_fill, fill);
TARGET(rgpt_decode, decode);
