// The kernels of training as targets of XLA's foreign function interface.
// gpt/native/training.py has the same operands in the same order.
#include "attention.h"
#include "gradient.h"
#include "orthogonal.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<Floats>;
using Ints = ffi::Buffer<ffi::S32>;

static Attention attention_of(Floats& q, Floats& k, Floats& v,
                              Ints& segments) {
  auto n = q.dimensions();
  Attention a = {};
  a.B = n[0], a.L = n[1], a.H = n[2], a.G = k.dimensions()[2], a.K = n[3];
  a.q = q.typed_data(), a.k = k.typed_data(), a.v = v.typed_data();
  a.segments = segments.element_count() ? segments.typed_data() : nullptr;
  return a;
}

// f(head, b, g) for every key/value head of every sequence.
template <class E, class F>
static void each_head(const Attention& a, int threads, const F& f) {
  pool->run(a.B * a.G, threads, [&](int i) {
    thread_local Head<E> head;
    f(head, i / a.G, i % a.G);
  });
}

static ffi::Error attention(Floats q, Floats k, Floats v, Ints segments,
                            Result out, Result lse, int32_t threads,
                            bool half) {
  Attention a = attention_of(q, k, v, segments);
  a.out = out->typed_data(), a.lse = lse->typed_data();
  auto run = [&](auto& head, int b, int g) { head.forward(a, b, g); };
  if (half) each_head<Pair>(a, threads, run);
  else each_head<float>(a, threads, run);
  return ffi::Error::Success();
}

static ffi::Error attention_gradient(Floats q, Floats k, Floats v,
                                     Ints segments, Floats out, Floats lse,
                                     Floats dout, Result dq, Result dk,
                                     Result dv, int32_t threads, bool half) {
  Attention a = attention_of(q, k, v, segments);
  a.out = out.typed_data(), a.lse = lse.typed_data();
  a.dout = dout.typed_data(), a.dq = dq->typed_data();
  a.dk = dk->typed_data(), a.dv = dv->typed_data();
  auto run = [&](auto& head, int b, int g) { head.backward(a, b, g); };
  if (half) each_head<Pair>(a, threads, run);
  else each_head<float>(a, threads, run);
  return ffi::Error::Success();
}

static ffi::Error matrix_gradient(Floats x, Floats y, Result out,
                                  int32_t threads, bool half) {
  int n = x.dimensions()[0], rows = x.dimensions()[1];
  int columns = y.dimensions()[1];
  auto run = half ? gradient<Pair> : gradient<float>;
  run(x.typed_data(), y.typed_data(), n, rows, columns, out->typed_data(),
      threads);
  return ffi::Error::Success();
}

static ffi::Error orthogonal(Floats x, Result out, int32_t threads,
                             int32_t steps, float a, float b, float c) {
  int n = x.dimensions()[1], m = x.dimensions()[2];
  float abc[] = {a, b, c};
  pool->run(x.dimensions()[0], threads, [&](int i) {
    thread_local Orthogonal one;
    size_t at = (size_t)i * n * m;
    one.run(x.typed_data() + at, n, m, steps, abc, out->typed_data() + at);
  });
  return ffi::Error::Success();
}

// Called in a process of its own after compiling: can this processor run it?
extern "C" int rgpt_probe() {
  std::vector<float> x(64, 1), out(64 * 64);
  gradient<Pair>(x.data(), x.data(), 1, 64, 64, out.data(), 1);
  return (int)out[0];
}

#define OPTIONS Attr<int32_t>("threads").Attr<bool>("half")
XLA_FFI_DEFINE_HANDLER_SYMBOL(rgpt_attention, attention,
                              ffi::Ffi::Bind()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .OPTIONS);
XLA_FFI_DEFINE_HANDLER_SYMBOL(rgpt_attention_gradient, attention_gradient,
                              ffi::Ffi::Bind()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .OPTIONS);
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    rgpt_matrix_gradient, matrix_gradient,
    ffi::Ffi::Bind().Arg<Floats>().Arg<Floats>().Ret<Floats>().OPTIONS);
XLA_FFI_DEFINE_HANDLER_SYMBOL(rgpt_orthogonal, orthogonal,
                              ffi::Ffi::Bind()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Attr<int32_t>("threads")
                                  .Attr<int32_t>("steps")
                                  .Attr<float>("a")
                                  .Attr<float>("b")
                                  .Attr<float>("c"));
