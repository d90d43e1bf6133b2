// The kernels as targets of XLA's foreign function interface. calls.py has the
// same operands in the same order: Operands, and a call's own.
#include "network.h"
#include "sampling.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

constexpr int STATE = 4;  // Operands of the state; also the first results.

// Tokens at the positions from `first` on of one slot.
struct Fill {
  const int *control, *token;  // [4]: slot, first, count, Out; [count]
  float* out;                  // [count][D] or [V]

  void run(Network& net) const {
    enum Out { NOTHING, HIDDEN, LOGITS };
    int slot = control[0], first = control[1], count = control[2];
    for (int done = 0; done < count; done += CHUNK) {
      int rows = std::min(CHUNK, count - done);
      for (int r = 0; r < rows; r++)
        net.place(r, token[done + r], slot, first + done + r);
      net.layers(rows);
      if (control[3] == NOTHING) continue;
      int width = control[3] == LOGITS ? net.m.V : net.m.D;
      Rows& from = control[3] == LOGITS ? net.logits() : net.h;
      for (int r = 0; r < rows; r++)
        std::copy_n(from[r], width, out + (size_t)(done + r) * width);
    }
  }
};

// What may follow the tokens of columns 0 .. n: up to `most` that followed the
// last few tokens where they occurred before. Returns how many.
static int draft(const int* tokens, int n, int most, int* out) {
  constexpr int SAME = 3;
  if (n < SAME) return 0;
  const int *end = tokens + n, *same = end - SAME + 1;
  const int* found = std::find_end(tokens, end, same, end + 1);
  if (found == end) return 0;
  most = std::min(most, int(same - found));
  std::copy_n(found + SAME, most, out);
  return most;
}

// Decode steps with sampling, as blocks.decode_block.
//
// A single row may try up to `draft` drafted tokens in one pass. Each token is
// the one that its own logits and random number give, drafted or not: a pass
// ends where a draft was wrong. The text is the same; it only comes sooner.
struct Decode {
  // [5]: rows, steps, draft, whether logits are wanted, steps with room; [rows]
  const int *control, *slot, *last, *length, *step;
  const uint32_t* seed;  // Of slots, as all that follow.
  const Sampling* settings;
  const bool* in_prompt;  // [V]
  const float* bias;      // [V]
  int* out;               // [rows][room]
  float* logits;          // [rows][room][V], raw

  // Token i of a row from its logits, which are overwritten.
  int choose(Network& net, int row, int i, float* p) const {
    size_t V = net.m.V, s = slot[row], to = (size_t)row * control[4] + i;
    int* counts = net.o.counts + s * V;
    // New pages cost more than the copy: not for nothing.
    if (control[3]) std::copy_n(p, V, logits + to * V);
    int token = sample(p, V, settings[s], uniform(seed[s], step[row] + i),
                       in_prompt + s * V, counts, bias + s * V);
    if (length[row] + i < net.m.T) counts[token]++;
    return out[to] = token;
  }

  void run(Network& net) const {
    int rows = control[0], steps = std::min(control[1], control[4]);
    int *token = net.token, *pos = net.pos, S = net.m.S;
    for (int from = 0; from < rows; from += CHUNK) {
      int count = std::min(CHUNK, rows - from);
      std::copy_n(last + from, count, token);
      for (int i = 0; i < steps;) {
        for (int r = 0; r < count; r++)
          net.place(r, token[r], slot[from + r], length[from + r] + i);
        int tried = 0;
        if (rows == 1 && net.drafts_pay()) {
          int room = std::min({control[2], steps - i - 1, S - 1 - pos[0]});
          const int* columns = net.o.tokens + (size_t)slot[0] * S;
          tried = draft(columns, pos[0], room, token + 1);
          for (int r = 1; r <= tried; r++)
            net.place(r, token[r], slot[0], pos[0] + r);
        }
        net.layers(count + tried);
        Rows& scores = net.logits();
        pool->run(count, net.m.threads, [&](int r) {
          token[r] = choose(net, from + r, i, scores[r]);
        });
        int right = 0;
        for (i++; right < tried && token[0] == token[right + 1]; i++)
          token[0] = choose(net, 0, i, scores[++right]);
        if (tried) net.right += 0.1f * (right - net.right);
      }
    }
  }
};

template <class Call>
static ffi::Error run(ffi::RemainingArgs args, ffi::RemainingRets rets,
                      ffi::Span<const int32_t> shape) {
  thread_local Network net;
  std::vector<void*> all;
  for (size_t i = 0; i < args.size(); i++)
    all.push_back((*args.get<ffi::AnyBuffer>(i)).untyped_data());
  for (size_t i = 0; i < rets.size(); i++) {
    void* data = (**rets.get<ffi::AnyBuffer>(i)).untyped_data();
    if (i >= STATE) all.push_back(data);
    else if (data != all[i]) return ffi::Error::Internal("the state is a copy");
  }
  Call call;
  memcpy(&net.m, shape.begin(), sizeof net.m);
  memcpy(&net.o, all.data(), sizeof net.o);
  memcpy(&call, all.data() + sizeof net.o / sizeof(void*), sizeof call);
  call.run(net);
  return ffi::Error::Success();
}

// Called in a process of its own after compiling: can this processor run it?
extern "C" int rgpt_probe() {
  Rows x, y;
  x.resize(1, PANEL), y.resize(1, PANEL);
  x[0][0] = x[0][1] = 1;
  std::vector<float> w(PANEL * 3, 1.0f);
  Matrix m = {(uint32_t*)w.data(), 2, PANEL, false, false};
  linear(x, 1, m, y, Then::GELU, 2);
  return (int)y[0][0];
}

#define TARGET(name, Call)                           \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, run<Call>,     \
                                ffi::Ffi::Bind()     \
                                    .RemainingArgs() \
                                    .RemainingRets() \
                                    .Attr<ffi::Span<const int32_t>>("shape"))
TARGET(rgpt_fill, Fill);
TARGET(rgpt_decode, Decode);
