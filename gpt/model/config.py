"""GPTConfig: the options of a model, and what each option is to other code.

Each field is declared once, with its kind, its description and the file
formats that can represent it. Resuming, initializing from other weights, model
cards, `launch.info`, reports and exports derive their lists from here, so a
new option is one more field. This module imports no JAX: launchers read it
before they choose devices.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from gpt.errors import UserError, quoted
from gpt.model.options import (
  ANY,
  EVERYWHERE,
  FUNCTION,
  HF_ONLY,
  INIT,
  KINDS,
  RUNTIME,
  SHAPE,
  Option,
  option,
)
from gpt.model.rope_frequencies import parse_scaling

DTYPES = ('float32', 'bfloat16', 'mixed')
POSITIONS = ('learned', 'rope')
MLPS = ('relu2', 'relu', 'gelu', 'swiglu')
NORMS = ('rms', 'layer')
PARAM_DTYPES = ('float32', 'bfloat16')
# What files may ask for: far above every model in use, far below what would
# take hours to build.
LARGEST = {
  'vocab_size': 1 << 22,
  'n_embd': 1 << 16,
  'n_head': 1 << 12,
  'n_layer': 1 << 12,
  'block_size': 1 << 24,
}
MOST = 1 << 24  # Of other whole numbers.
# arch -> MLP, init std, std of the position embedding relative to it.
ARCHS = {
  'randy': ('relu2', 0.02, 0.5),
  'microgpt': ('relu', 0.08, 1.0),
}


@dataclasses.dataclass(frozen=True)
class GPTConfig:
  """A model's shape and options; hashable, so that jit can key on it.

  Names and meanings are those of `config.model` in configs/default.py, with
  every 'auto' resolved.

  Raises:
    UserError: impossible values or combinations.
  """

  vocab_size: int = option(SHAPE, holds=EVERYWHERE, label='', phrase='')
  n_embd: int = option(
    SHAPE,
    256,
    holds=EVERYWHERE,
    label='width',
    phrase='{n_layer} layers x {n_embd}',
    always=True,
  )
  # Without n_kv_head the shapes are the same for any number of heads.
  n_head: int = option(
    FUNCTION,
    8,
    holds=EVERYWHERE,
    label='heads',
    phrase='{n_head} heads',
    always=True,
  )
  n_layer: int = option(
    SHAPE, 6, holds=EVERYWHERE, label='layers', phrase='', always=True
  )
  block_size: int = option(
    SHAPE,
    256,
    holds=EVERYWHERE,
    label='context',
    phrase='context {block_size}',
    always=True,
  )
  arch: str = option(
    FUNCTION,
    'randy',
    holds={'rgpt': ('randy',), 'microgpt': ('microgpt',), 'hf': tuple(ARCHS)},
    label='architecture',
    phrase='{arch}',
    always=True,
  )
  dropout: float = option(RUNTIME, 0.0, holds=HF_ONLY)
  mlp: str = option(
    FUNCTION,
    'auto',
    holds={
      'rgpt': ('relu2',),
      'microgpt': ('relu',),
      'hf': ('relu2', 'relu', 'gelu', 'swiglu'),
    },
    label='MLP',
    phrase='MLP {mlp}',
    always=True,
  )
  pos: str = option(
    FUNCTION,
    'learned',
    holds={'hf': ('learned', 'rope')},
    label='positions',
    phrase='positions {pos}',
    always=True,
  )
  # 0: n_head, to which an equal number is normalized.
  n_kv_head: int = option(
    SHAPE,
    0,
    holds=HF_ONLY,
    label='key/value heads',
    phrase='{n_kv_head} key/value heads',
  )
  # 0: n_embd / n_head. The field holds the resolved number.
  head_dim: int = option(SHAPE, 0, holds=HF_ONLY, label='head width')
  # 0: 4 n_embd. The field holds the resolved number.
  mlp_width: int = option(SHAPE, 0, holds=HF_ONLY, label='MLP width')
  rope_base: float = option(
    FUNCTION, 10_000.0, holds=HF_ONLY, phrase='RoPE base {rope_base:g}'
  )
  rope_scaling: str = option(
    FUNCTION, '', holds=HF_ONLY, phrase='RoPE scaled {rope_scaling}'
  )
  norm: str = option(FUNCTION, 'rms', holds={'hf': NORMS}, phrase='norm {norm}')
  norm_gain: bool = option(SHAPE, False, holds=HF_ONLY)
  norm_eps: float = option(
    FUNCTION, 1e-5, holds=HF_ONLY, phrase='norm_eps {norm_eps:g}'
  )
  bias: bool = option(SHAPE, False, holds=HF_ONLY)
  embed_norm: bool = option(
    FUNCTION, False, holds={'microgpt': (True,), 'hf': ANY}
  )
  qk_norm: bool = option(FUNCTION, False, holds=HF_ONLY)
  qk_gain: bool = option(SHAPE, False, holds=HF_ONLY)
  exclusive_attention: bool = option(FUNCTION, False, holds=HF_ONLY)
  final_norm: bool = option(FUNCTION, False, holds=HF_ONLY)
  logit_softcap: float = option(
    FUNCTION, 0.0, holds=HF_ONLY, phrase='logits capped at {logit_softcap:g}'
  )
  tied_embeddings: bool = option(SHAPE, False, holds=HF_ONLY)
  zero_init: bool = option(INIT, False)
  init_std: float = option(INIT, 0.0, holds=HF_ONLY)
  dtype: str = option(RUNTIME, 'float32', phrase='{dtype}', always=True)
  param_dtype: str = option(RUNTIME, 'float32', phrase='{param_dtype} weights')
  attention: str = option(RUNTIME, 'plain')
  remat: bool = option(RUNTIME, False)

  def __post_init__(self) -> None:
    check_types(dataclasses.asdict(self))
    check_choice('arch', self.arch, ARCHS)
    uneven = self.head_dim == 0 and self.n_embd % max(self.n_head, 1)
    for name, value in resolved(dataclasses.asdict(self)).items():
      object.__setattr__(self, name, value)
    check_choice('mlp', self.mlp, ('auto', *MLPS))
    check_choice('pos', self.pos, POSITIONS)
    check_choice('dtype', self.dtype, DTYPES)
    check_choice('norm', self.norm, NORMS)
    check_choice('param_dtype', self.param_dtype, PARAM_DTYPES)
    for name in ('vocab_size', 'n_embd', 'n_head', 'n_layer', 'block_size'):
      if getattr(self, name) < 1:
        raise UserError(
          f'model.{name} is {getattr(self, name)}; it must be at least 1'
        )
    for name in ('head_dim', 'mlp_width'):
      if getattr(self, name) < 1:
        raise UserError(f'model.{name} must not be negative; 0: the default')
    if uneven:
      raise UserError(
        f'n_embd {self.n_embd} is not divisible by n_head {self.n_head}: '
        'change one of them, or set model.head_dim'
      )
    if self.n_kv_head < 0 or self.n_head % (self.n_kv_head or self.n_head):
      raise UserError(
        f'n_head {self.n_head} is not divisible by n_kv_head {self.n_kv_head}'
      )
    if self.pos == 'rope' and self.head_dim % 2:
      raise UserError(
        "pos='rope' needs an even head dimension, got "
        f'{self.head_dim}: change n_embd or n_head, or set model.head_dim'
      )
    self._check_rope_and_norms()
    if not 0 <= self.dropout < 1:
      raise UserError(f'model.dropout {self.dropout} is not in [0, 1)')
    if self.logit_softcap < 0 or self.init_std < 0:
      raise UserError('model.logit_softcap and init_std must not be negative')

  def _check_rope_and_norms(self) -> None:
    if not self.rope_base > 0 or not self.norm_eps > 0:
      raise UserError(
        'model.rope_base and norm_eps must be positive, got '
        f'{self.rope_base} and {self.norm_eps}'
      )
    parse_scaling(self.rope_scaling)
    given = self.rope_base != 10_000.0 or self.rope_scaling
    if self.pos != 'rope' and given:
      raise UserError(
        f"model.rope_base and rope_scaling need pos='rope', got {self.pos!r}"
      )
    if self.qk_gain and not self.qk_norm:
      raise UserError('model.qk_gain needs model.qk_norm')

  @property
  def kv_heads(self) -> int:
    """G, the number of key/value heads."""
    return self.n_kv_head or self.n_head

  @property
  def activation_dtype(self) -> str:
    """Dtype of activations between matrix products, and of the cache."""
    return 'float32' if self.dtype == 'mixed' else self.dtype

  @property
  def matmul_dtype(self) -> str:
    """Dtype of the operands of matrix products."""
    return matmul_dtype(self.dtype)

  @classmethod
  def from_config(
    cls,
    model: Mapping[str, Any],
    vocab_size: int,
    backend: str | None = None,
  ) -> 'GPTConfig':
    """Resolves `config.model` (ConfigDict or dict) for a backend.

    Args:
      backend: of gpt.devices.backend_name; None: the one JAX runs on.
    """
    from gpt import devices
    from gpt.model.attention import resolve_kernel

    fields = dict(model)
    check_types(fields)
    backend = backend or devices.backend_name()
    fields['dtype'] = resolve_dtype(fields['dtype'], backend)
    fields['attention'] = resolve_kernel(
      fields['attention'],
      backend,
      matmul_dtype(fields['dtype']),
      resolved(fields)['head_dim'],
    )
    return cls(vocab_size=vocab_size, **fields)


def resolved(options: Mapping[str, Any]) -> dict[str, Any]:
  """All options but those without a default, with values `arch` implies."""
  found = _defaults() | dict(options)
  mlp, init_std, _ = ARCHS.get(found['arch'], ('auto', 0.0, 1.0))
  if found['mlp'] == 'auto':
    found['mlp'] = mlp
  if found['init_std'] == 0.0:
    found['init_std'] = init_std
  if found['arch'] == 'microgpt':
    found['embed_norm'] = True
  if found['n_kv_head'] == found['n_head']:
    found['n_kv_head'] = 0
  found['head_dim'] = found['head_dim'] or (
    found['n_embd'] // max(found['n_head'], 1)
  )
  found['mlp_width'] = found['mlp_width'] or 4 * found['n_embd']
  return found


# --- what others derive from the table


def option_names(*kinds: str, format: str | None = None) -> tuple[str, ...]:
  """Keys of `config.model` in the order of the fields.

  The vocabulary size, which belongs to the tokenizer, is not among them.

  Args:
    kinds: of KINDS; none: all.
    format: only options that files of this format hold.
  """
  return tuple(
    name
    for name, found in _table().items()
    if name != 'vocab_size'
    and (not kinds or found.kind in kinds)
    and (format is None or format in found.holds)
  )


def unrepresentable(cfg: GPTConfig, format: str) -> list[str]:
  """Reasons why a file format cannot represent a model; [] if it can."""
  defaults, found = _usual(dataclasses.asdict(cfg)), []
  for name, entry in _table().items():
    value, allowed = getattr(cfg, name), ANY
    if format in entry.holds:
      allowed = entry.holds[format]
    elif entry.kind in (SHAPE, FUNCTION):
      allowed = (defaults[name],)
    if allowed is not None and value not in allowed:
      wanted = ' or '.join(repr(x) for x in allowed)
      found.append(f'model.{name} is {value!r}, not {wanted}')
  return found


def describe_options(
  options: Mapping[str, Any], kinds: tuple[str, ...] = KINDS
) -> list[str]:
  """Phrases such as ['randy', '6 layers x 256', 'MLP relu2', 'qk_norm'].

  Args:
    options: `config.model` or the fields of a GPTConfig; absent options have
      their defaults.
    kinds: which options to describe.
  """
  values = resolved(options)
  phrases = {
    name: entry.phrase.format(name=name, value=values[name], **values)
    for name, entry in _table().items()
    if entry.kind in kinds and _is_described(name, entry, values)
  }
  return [phrases.pop('arch'), *filter(None, phrases.values())]


def option_rows(cfg: GPTConfig) -> dict[str, Any]:
  """{label: value} of the options that a table about the model shows."""
  values = dataclasses.asdict(cfg)
  return {
    entry.label.format(name=name): values[name]
    for name, entry in _table().items()
    if entry.label and _is_described(name, entry, values)
  }


def _table() -> dict[str, Option]:
  return {f.name: f.metadata['option'] for f in dataclasses.fields(GPTConfig)}


def _defaults() -> dict[str, Any]:
  return {
    f.name: f.default
    for f in dataclasses.fields(GPTConfig)
    if f.default is not dataclasses.MISSING
  }


def _usual(values: Mapping[str, Any]) -> dict[str, Any]:
  """The defaults, with the widths that follow from other options."""
  widths = {'head_dim': 0, 'mlp_width': 0}
  derived = resolved({**values, **widths})
  return _defaults() | {name: derived[name] for name in widths}


def _is_described(name: str, entry: Option, values: Mapping[str, Any]) -> bool:
  return entry.always or (
    name in values and values[name] != _usual(values).get(name)
  )


# --- values


def check_types(options: Mapping[str, Any]) -> None:
  """Raises UserError for an option of another type or of absurd size."""
  types: dict[str, Any] = {
    f.name: f.type for f in dataclasses.fields(GPTConfig)
  }
  for name, value in options.items():
    wanted = types.get(name)
    if wanted is float:
      good = type(value) in (int, float) and abs(value) < 1e30
      allowed = 'a number'
    elif wanted is int:
      most = LARGEST.get(name, MOST)
      good = type(value) is int and abs(value) <= most
      allowed = f'a whole number up to {most}'
    else:
      good = wanted is None or type(value) is wanted
      allowed = 'true or false' if wanted is bool else 'a string'
    if not good:
      raise UserError(f'model.{name} is {quoted(value)}; allowed: {allowed}')


def check_choice(name: str, value: str, allowed: Collection[str]) -> None:
  """Raises UserError unless `value` is one of `allowed`."""
  if value not in allowed:
    raise UserError(
      f'model.{name} {quoted(value)} is not known; allowed: '
      f'{", ".join(allowed)}'
    )


def matmul_dtype(dtype: str) -> str:
  """Dtype of the operands of matrix products under `config.model.dtype`."""
  return 'bfloat16' if dtype == 'mixed' else dtype


def resolve_dtype(name: str, backend: str) -> str:
  """Resolves 'auto' to bfloat16 on GPUs and TPUs, and to float32 elsewhere.

  A new run on a CPU records another (gpt.start.with_dtype). Metal has no
  bfloat16: everything is float32 there.

  Args:
    backend: of gpt.devices.backend_name.
  """
  check_choice('dtype', name, ('auto', *DTYPES))
  if name == 'auto':
    return 'bfloat16' if backend in ('cuda', 'rocm', 'tpu') else 'float32'
  return 'float32' if backend.lower() == 'metal' else name
