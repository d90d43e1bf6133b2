"""Compiled CPU kernels for decoding, called through jax.ffi.

One call runs whole decode steps: the network, sampling and the next token, for
all rows. The sources are C++ (kernels.cc and its headers), which
gpt/native/build.py compiles on first use. weights.py packs a model's weights,
calls.py has the calls as pure functions. gpt/decoding/blocks.py is the same in
JAX: the reference, and what runs where there is no compiler, on other backends,
or with RGPT_KERNELS=off.
"""

from gpt.kernels.library import plan_for as plan_for
from gpt.kernels.weights import pack as pack
