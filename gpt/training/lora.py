"""LoRA: a frozen base and a small trained update of some of its matrices.

    W' = W + (alpha / rank) A B,   A [in, rank], B [rank, out]

Only A and B are trained. B starts as zeros, so training starts from the base.

References:
  Hu et al. 2021, LoRA (https://arxiv.org/abs/2106.09685).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from gpt.errors import UserError
from gpt.model import GPT, GPTConfig, abstract_params
from gpt.model.params import Params

# The matrices of a block that can be adapted; 'gate' exists with swiglu alone.
MATRICES = ('wq', 'wk', 'wv', 'wo', 'fc1', 'gate', 'fc2')
ALL = 'all'


def init(
  key: jax.Array, params: Params, rank: int, targets: tuple[str, ...]
) -> dict[str, Any]:
  """Adapters that change nothing yet.

  A is uniform in +-1 / sqrt(in), as in the peft library; B is zero.

  Args:
    params: the base, or its ShapeDtypeStructs.
    targets: of MATRICES; those that `params` has are adapted.

  Returns:
    {'block_0': {'wq': {'a': float32[in, rank], 'b': float32[rank, out]}}, ...}.
  """
  places = [
    (name, target)
    for name in sorted(params)
    for target in MATRICES
    if name.startswith('block_')
    and target in targets
    and target in params[name]
  ]
  sizes = [params[name][target].shape[0] * rank for name, target in places]
  # One draw for all: a program of hundreds takes minutes to compile.
  numbers = jax.random.uniform(key, (sum(sizes),), minval=-1.0, maxval=1.0)
  adapters: dict[str, Any] = {name: {} for name, _ in places}
  start = 0
  for (name, target), size in zip(places, sizes):
    n_in, n_out = params[name][target].shape
    a = numbers[start : start + size].reshape(n_in, rank) * n_in**-0.5
    adapters[name][target] = {'a': a, 'b': jnp.zeros((rank, n_out))}
    start += size
  return adapters


def merge(base: Params, adapters: Params, alpha: float) -> dict[str, Any]:
  """The params of the adapted model.

  Args:
    base: all params, of float32 or bfloat16; numpy or JAX, as the result.
    adapters: of `init`.

  Returns:
    A tree like `base`, adapted matrices in float32 and others as they are.
  """
  params = dict(base)
  # On GPUs and TPUs the default precision would round the update.
  with jax.default_matmul_precision('highest'):
    for name, block in adapters.items():
      params[name] = dict(base[name])
      for target, ab in block.items():
        scale = np.float32(alpha / ab['a'].shape[1])
        update = scale * (ab['a'] @ ab['b'])
        params[name][target] = base[name][target].astype(np.float32) + update
  return params


@struct.dataclass
class AdaptedMatrix:
  """Multiplies like W' = W + scale A B, at the cost of W.

    x W' = x W + scale (x A) B

  The model computes with it as with an array. Compared with a merged matrix,
  the backward pass needs neither a copy of W' nor the gradient of W, which is
  a third of the work of full fine-tuning.

  Attributes:
    w, a, b: [in, out], [in, rank], [rank, out]. W comes first: flax compares
      the shape of the first leaf with the initializer's.
    scale: alpha / rank.
  """

  w: jax.Array
  a: jax.Array
  b: jax.Array
  scale: float = struct.field(pytree_node=False)

  @property
  def shape(self) -> tuple[int, ...]:
    return self.w.shape

  def astype(self, dtype: Any) -> 'AdaptedMatrix':
    w, a, b = (x.astype(dtype) for x in (self.w, self.a, self.b))
    return AdaptedMatrix(w, a, b, self.scale)

  def __rmatmul__(self, x: jax.Array) -> jax.Array:
    return x @ self.w + self.scale * ((x @ self.a) @ self.b)


def attach(base: Params, adapters: Params, alpha: float) -> dict[str, Any]:
  """As `merge`, with AdaptedMatrix in place of the adapted matrices."""
  params = dict(base)
  for name, block in adapters.items():
    found = {
      target: AdaptedMatrix(
        base[name][target], ab['a'], ab['b'], alpha / ab['a'].shape[1]
      )
      for target, ab in block.items()
    }
    params[name] = {**base[name], **found}
  return params


@dataclasses.dataclass(frozen=True)
class Adapted:
  """A GPT whose trained params are adapters; hashable, like the linen module.

  Its base is a variable collection of its own:

      adapted.apply({'params': adapters, 'base': base}, tokens)

  Attributes:
    model: the GPT.
    rank, alpha, targets: see the module docstring and `init`.
  """

  model: GPT
  rank: int
  alpha: float
  targets: tuple[str, ...]

  @property
  def cfg(self) -> GPTConfig:
    return self.model.cfg

  def init(self, key: jax.Array, *_: Any) -> dict[str, Any]:
    """{'params': fresh adapters}; the base is not initialised."""
    shapes = abstract_params(self.cfg)
    return {'params': init(key, shapes, self.rank, self.targets)}

  def apply(
    self, variables: Mapping[str, Any], *args: Any, **kwargs: Any
  ) -> Any:
    """As GPT.apply, without ever making W', except with dtype 'mixed'."""
    join = merge if self.cfg.dtype == 'mixed' else attach
    params = join(variables['base'], variables['params'], self.alpha)
    return self.model.apply({'params': params}, *args, **kwargs)


def adapted(model: GPT, opt: Mapping[str, Any]) -> GPT | Adapted:
  """The model that is trained: `model` itself if opt.lora_rank is 0.

  Args:
    opt: `config.opt`, a ConfigDict or a dict; older ones have no such keys.
  """
  if not opt.get('lora_rank'):
    return model
  targets = read_targets(opt['lora_targets'])
  return Adapted(model, opt['lora_rank'], opt['lora_alpha'], targets)


def whole(
  model: GPT | Adapted, params: Params, frozen: Mapping[str, Any]
) -> Params:
  """The params of the GPT, on the host: adapters merged into their base.

  Args:
    params, frozen: the trained params and the base, on device or host.
  """
  params = jax.device_get(params)
  if isinstance(model, GPT):
    return params
  return merge(jax.device_get(frozen['base']), params, model.alpha)


def abstract(model: GPT | Adapted) -> Params:
  """The trained params as ShapeDtypeStructs."""
  if isinstance(model, GPT):
    return abstract_params(model.cfg)
  return jax.eval_shape(model.init, jax.eval_shape(jax.random.key, 0))['params']


def read_targets(text: str) -> tuple[str, ...]:
  """'all' or 'wq,wv' -> names of MATRICES. Raises UserError."""
  if text == ALL:
    return MATRICES
  names = tuple(name.strip() for name in text.split(','))
  unknown = [name for name in names if name not in MATRICES]
  if unknown:
    raise UserError(
      f'opt.lora_targets {unknown[0]!r} is not known; allowed: {ALL}, or some '
      f'of {", ".join(MATRICES)}, comma separated'
    )
  return names


def describe(opt: Mapping[str, Any], adapters: Params) -> str:
  """One line about what is trained."""
  size = sum(x.size for x in jax.tree.leaves(adapters))
  return (
    f'LoRA: rank {opt["lora_rank"]}, alpha {opt["lora_alpha"]:g}, targets '
    f'{opt["lora_targets"]}: {size:,} parameters are trained'
  )


def rank(config: Any) -> int:
  """opt.lora_rank, which the configs of 0.2 do not have; 0: no adapters."""
  return config.opt.get('lora_rank', 0)


def check(config: Any) -> None:
  """Raises UserError for keys of config.opt.lora_* that no run can use."""
  opt = config.opt
  if 'lora_rank' not in opt:  # The config of a run that 0.2 began.
    return
  if opt.lora_rank < 0 or opt.lora_alpha <= 0:
    raise UserError(
      f'opt.lora_rank {opt.lora_rank} must not be negative and opt.lora_alpha '
      f'{opt.lora_alpha} must be positive'
    )
  targets = read_targets(opt.lora_targets)
  if not opt.lora_rank:
    return
  if opt.name != 'adamw':
    raise UserError(
      f'opt.lora_rank={opt.lora_rank} needs opt.name=adamw, here it is '
      f'{opt.name}, which is for whole matrices, not for their factors'
    )
  if opt.lora_rank > config.model.n_embd:
    raise UserError(
      f'opt.lora_rank {opt.lora_rank} is larger than model.n_embd '
      f'{config.model.n_embd}: an update has no higher rank'
    )
  cfg = GPTConfig.from_config(config.model, vocab_size=2, backend='cpu')
  if targets == ('gate',) and cfg.mlp != 'swiglu':
    raise UserError(
      f'opt.lora_targets=gate needs model.mlp=swiglu, here it is {cfg.mlp!r}'
    )
