"""Checks that a function would compile for an Apple GPU.

No Mac is needed: JAX lowers a function for the METAL platform on any machine,
and the StableHLO that it would hand to Apple's plugin (jax-metal 0.1.1, the
last release) is compared with what that plugin accepts. The plugin works only
with jax 0.5.0; newer versions lower as well, with a few other operations.
"""

import re
import warnings

import jax

from gpt.native import training

# Operations that the plugin converts, except rng_bit_generator, whose converter
# rejects the ui32 that JAX requests (use threefry keys).
TAKEN = frozenset(
  """
  abs acos acosh add all_reduce and asin asinh atan atan2 atanh
  bitcast_convert broadcast_in_dim case ceil clamp compare concatenate constant
  constant_like convert convolution cosh cosine custom_call divide dot
  dot_general dynamic_slice dynamic_update_slice erf erf_inv exponential
  exponential_minus_one floor gather if iota is_finite is_inf lgamma log
  log_plus_one maximum minimum multiply negate next_after not
  optimization_barrier or pad polygamma power reduce reduce_window remainder
  reshape return reverse round_nearest_afz round_nearest_even rsqrt scatter
  select select_and_scatter shift_left shift_right_arithmetic
  shift_right_logical sign sine sinh slice sort sqrt subtract tan tanh top_k
  topk transpose while xor zeta
  """.split()
)
# Operations that jax after 0.5.0 emits in place of one in TAKEN.
NEWER_SPELLINGS = frozenset(['square'])
IS_PINNED_JAX = jax.__version__ == '0.5.0'

# The plugin's tests do not cover ui64, but users run jax.random on it, and
# threefry counts in ui64.
DTYPES = frozenset(['f32', 'i32', 'ui32', 'i1', 'ui64'])
CUSTOM_CALLS = frozenset(['Sharding'])


def lower_for_metal(fn, *args, **jit_kwargs) -> str:
  """StableHLO text of `fn(*args)` as the plugin would receive it.

  If `fn` is already jitted, `jit_kwargs` must be empty.
  """
  if not hasattr(fn, 'trace'):
    fn = jax.jit(fn, **jit_kwargs)
  elif jit_kwargs:
    raise ValueError('the function is already jitted')
  # There the backend is no CPU, for which our kernels are.
  with training.reference(), warnings.catch_warnings():
    # JAX warns that METAL ignores donation, which is harmless.
    warnings.filterwarnings('ignore', 'Some donated buffers were not usable')
    lowered = fn.trace(*args).lower(lowering_platforms=('METAL',))
  return lowered.as_text()


def check_metal_lowering(fn, *args, **jit_kwargs) -> list[str]:
  """Problems of `fn(*args)` on METAL, one per line; [] if there are none."""
  try:
    text = lower_for_metal(fn, *args, **jit_kwargs)
  except Exception as e:
    first = (str(e).splitlines() or [''])[0]
    return [f'does not lower: {type(e).__name__}: {first}']
  return check_stablehlo(text)


def check_stablehlo(text: str) -> list[str]:
  """Problems in a lowered module; see `check_metal_lowering`."""
  taken = TAKEN if IS_PINNED_JAX else TAKEN | NEWER_SPELLINGS
  ops = set(re.findall(r'\b(?:stablehlo|chlo|mhlo)\.([a-z]\w*)', text))
  # Attributes of modules and arguments look like operations.
  ops -= {'num_partitions', 'num_replicas', 'sharding', 'mesh'}
  problems = {f'operation {op}' for op in ops - taken}
  problems |= {f'dtype {name}' for name in dtypes(text) - DTYPES}
  calls = set(re.findall(r'custom_call @([\w.]+)', text)) - CUSTOM_CALLS
  problems |= {f'custom call {name}' for name in calls}
  if re.search(r'dynamic_(?:update_)?slice [^\n]*tensor<ui32>', text):
    problems.add('dynamic slice with unsigned indices')
  for batch, contracting in dot_shapes(text):
    if batch and contracting > 1:
      problems.add(
        f'dot_general with {batch} batch and {contracting} contracting axes'
      )
  return sorted(problems)


def dtypes(text: str) -> set[str]:
  """Element types of every tensor in the module."""
  text = re.sub(r'<\{.*?\}>', '', text)  # Attributes of an operation.
  return set(re.findall(r'tensor<(?:[0-9?]+x)*([A-Za-z]\w*)', text))


def dot_shapes(text: str) -> set[tuple[int, int]]:
  """(batch axes, contracting axes) of every dot_general."""

  def count(name, line):
    axes = re.search(rf'{name}_dims = \[([^\]]*)\]', line)
    return len(re.findall(r'\d+', axes.group(1))) if axes else 0

  lines = re.findall(r'dot_general [^\n]*', text)
  return {(count('batching', x), count('contracting', x)) for x in lines}
