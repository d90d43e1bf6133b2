"""Options of the model <-> llama.cpp's architectures: keys and tensor names.

  llama   SwiGLU, RMSNorm; q and k interleaved    biases if there are all
  qwen3   the same with norms of q and k           (halves, as ours)
  arcee   ReLU^2 without a gate; q and k interleaved
  gpt2    GELU, LayerNorm, biases, learned positions; q, k and v in one tensor

llama.cpp rotates the pairs (x_2i, x_{2i+1}) for llama and arcee: the rows of q
and k are stored in that order, see `interleave`.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpt.errors import UserError, quoted
from gpt.formats import architectures as families
from gpt.model import GPTConfig
from gpt.model.rope_frequencies import parse_scaling, rope_frequencies

# Our name of a tensor in a block -> the file's, after 'blk.{i}.'.
LEAVES = {
  'wq': 'attn_q.weight',
  'wk': 'attn_k.weight',
  'wv': 'attn_v.weight',
  'wo': 'attn_output.weight',
  'gate': 'ffn_gate.weight',
  'fc1': 'ffn_up.weight',
  'fc2': 'ffn_down.weight',
  'bq': 'attn_q.bias',
  'bk': 'attn_k.bias',
  'bv': 'attn_v.bias',
  'bo': 'attn_output.bias',
  'bgate': 'ffn_gate.bias',
  'b1': 'ffn_up.bias',
  'b2': 'ffn_down.bias',
  'q_gain': 'attn_q_norm.weight',
  'k_gain': 'attn_k_norm.weight',
  'attn_norm': 'attn_norm.weight',
  'attn_norm_bias': 'attn_norm.bias',
  'mlp_norm': 'ffn_norm.weight',
  'mlp_norm_bias': 'ffn_norm.bias',
}
# Outside the blocks.
TABLES = {
  'wte': 'token_embd.weight',
  'wpe': 'position_embd.weight',
  'final_norm': 'output_norm.weight',
  'final_norm_bias': 'output_norm.bias',
  'lm_head': 'output.weight',
}
ROPE_FREQS = 'rope_freqs.weight'
# gpt2 stores these one below the other.
FUSED = {
  'attn_qkv.weight': ('wq', 'wk', 'wv'),
  'attn_qkv.bias': ('bq', 'bk', 'bv'),
}


@dataclasses.dataclass(frozen=True)
class Architecture:
  """The options and keys that an architecture fixes.

  Attributes:
    options: our options that it implies.
    eps: the key of the norms' epsilon.
    interleaved: whether rows of q and k are stored as rotated pairs.
    biases: whether it can do without biases, with them, or both.
  """

  options: Mapping[str, Any]
  eps: str = 'attention.layer_norm_rms_epsilon'
  interleaved: bool = False
  biases: tuple[bool, ...] = (False,)


ROPE = {'pos': 'rope', 'norm': 'rms', 'final_norm': True, 'norm_gain': True}
ARCHITECTURES = {
  'llama': Architecture(
    {**ROPE, 'mlp': 'swiglu'}, interleaved=True, biases=(False, True)
  ),
  'qwen3': Architecture(
    {**ROPE, 'mlp': 'swiglu', 'qk_norm': True, 'qk_gain': True}
  ),
  'arcee': Architecture({**ROPE, 'mlp': 'relu2'}, interleaved=True),
  'gpt2': Architecture(
    {
      'pos': 'learned',
      'norm': 'layer',
      'final_norm': True,
      'norm_gain': True,
      'mlp': 'gelu',
      'bias': True,
    },
    eps='attention.layer_norm_epsilon',
    biases=(True,),
  ),
}
# What else is known about architectures that cannot be read.
LACKING = {
  'qwen2': 'biases of q, k and v alone',
  'qwen2moe': 'mixture of experts',
  'qwen3moe': 'mixture of experts',
  'llama4': 'mixture of experts, chunked attention',
  'deepseek2': 'mixture of experts, latent attention',
  'gemma': 'scaled embeddings, GeGLU',
  'gemma2': 'sliding windows, norms after each layer',
  'gemma3': 'sliding windows, norms after each layer',
  'gpt-oss': 'mixture of experts, sliding windows, attention sinks',
  'phi3': 'sliding windows, partial rotation',
  'smollm3': 'layers without positions',
  'mamba': 'state spaces',
  'mamba2': 'state spaces',
}
# Keys below 'ARCH.' that are read, or that change nothing here.
KNOWN_KEYS = {
  'block_count',
  'context_length',
  'embedding_length',
  'feed_forward_length',
  'vocab_size',
  'attention.head_count',
  'attention.head_count_kv',
  'attention.key_length',
  'attention.value_length',
  'attention.layer_norm_rms_epsilon',
  'attention.layer_norm_epsilon',
  'rope.dimension_count',
  'rope.freq_base',
  'rope.scaling.type',
  'rope.scaling.factor',
  'rope.scaling.original_context_length',
  'rope.scaling.finetuned',
  'rope.scale_linear',
  'tensor_data_layout',
}
FEATURES = {
  'expert_count': 'mixture of experts',
  'expert_used_count': 'mixture of experts',
  'attention.sliding_window': 'sliding windows',
  'final_logit_softcapping': 'soft-capped logits of another architecture',
  'pooling_type': 'pooling: an embedding model',
}
# Llama 3.1 to 3.3; a GGUF file holds the resulting factors only.
LLAMA3_RULE = (1.0, 4.0, 8192.0)


class Keys:
  """The metadata of one architecture; every error names the file."""

  def __init__(
    self, path: pathlib.Path, metadata: Mapping[str, Any], architecture: str
  ) -> None:
    self._path, self._metadata = path, metadata
    self.architecture = architecture

  def refuse(self, problem: str) -> UserError:
    """The error about a model that we cannot compute."""
    return UserError(
      f'{self._path}: {problem} (architecture {self.architecture!r})'
    )

  def get(self, key: str, kind: type, default: Any = None) -> Any:
    """The value of ARCH.key; one value if all layers have the same."""
    name = f'{self.architecture}.{key}'
    value = self._metadata.get(name, default)
    if isinstance(value, np.ndarray) and value.size:
      if (value != value[0]).any():
        raise self.refuse(f'{key} differs between layers, which rgpt lacks')
      value = value[0].item()
    if kind is float and isinstance(value, int) and type(value) is not bool:
      value = float(value)
    if type(value) is not kind:
      raise self.refuse(
        f'{name} is {quoted(value)}, expected {kind.__name__}'
        if name in self._metadata
        else f'{name} is missing'
      )
    return value

  def whole(self, key: str, default: int | None = None) -> int:
    """A positive int below 2^31."""
    value = self.get(key, int, default)
    if not 0 < value < 1 << 31:
      raise self.refuse(f'{self.architecture}.{key} is {value}')
    return value

  def unknown(self) -> dict[str, Any]:
    """{key: value} of features that we do not know, zeros left out."""
    start = f'{self.architecture}.'
    given = {
      name.removeprefix(start): value
      for name, value in self._metadata.items()
      if name.startswith(start)
    }
    return {
      key: value
      for key, value in given.items()
      if key not in KNOWN_KEYS and (np.ndim(value) or value)
    }


def read_options(
  path: pathlib.Path,
  metadata: Mapping[str, Any],
  names: set[str],
  freqs: np.ndarray | None,
) -> tuple[str, dict[str, Any]]:
  """(architecture, options of `config.model`) of a file.

  Args:
    metadata: of GgufFile.
    names: of its tensors.
    freqs: the tensor ROPE_FREQS, float32[K / 2], if there is one.

  Raises:
    UserError: an architecture or feature that rgpt lacks, or wrong values.
  """
  name = metadata.get('general.architecture')
  if not isinstance(name, str) or name not in ARCHITECTURES:
    why = LACKING.get(name) if isinstance(name, str) else None
    raise UserError(
      f'{path} holds a model of architecture {quoted(name)}'
      + (f' ({why})' if why else '')
      + f', which rgpt lacks; read are {", ".join(ARCHITECTURES)}'
    )
  parts = metadata.get('split.count', 0)
  if isinstance(parts, int) and parts > 1:
    raise UserError(
      f'{path} is one part of {parts}: join them first '
      '(llama-gguf-split --merge)'
    )
  keys, found = Keys(path, metadata, name), ARCHITECTURES[name]
  for key, value in keys.unknown().items():
    raise keys.refuse(
      f'the model has {FEATURES.get(key, "a feature")} that rgpt lacks: '
      f'{name}.{quoted(key)[1:-1]} = {quoted(value)}'
    )
  n_embd = keys.whole('embedding_length')
  n_head = keys.whole('attention.head_count')
  head_dim = keys.whole('attention.key_length', max(n_embd // n_head, 1))
  options = {
    'arch': 'randy',
    'n_embd': n_embd,
    'n_head': n_head,
    'n_kv_head': keys.whole('attention.head_count_kv', n_head),
    'n_layer': keys.whole('block_count'),
    'block_size': keys.whole('context_length'),
    'head_dim': head_dim,
    'mlp_width': keys.whole('feed_forward_length'),
    'norm_eps': _short(keys.get(found.eps, float)),
    'tied_embeddings': TABLES['lm_head'] not in names,
    **found.options,
  }
  for key in ('attention.value_length', 'rope.dimension_count'):
    if keys.whole(key, head_dim) != head_dim:
      raise keys.refuse(
        f'{key} is not the width of a head, {head_dim}, which rgpt lacks'
      )
  if options['pos'] == 'rope':
    options['rope_base'] = _short(keys.get('rope.freq_base', float, 1e4))
    options['rope_scaling'] = _read_scaling(
      keys, head_dim, options['rope_base'], freqs
    )
  if True in found.biases and False in found.biases:
    # Our models have all biases or none.
    options['bias'] = 'blk.0.attn_output.bias' in names
    if not options['bias'] and 'blk.0.attn_q.bias' in names:
      raise keys.refuse('biases of q, k and v alone, which rgpt lacks')
  return name, options


def _short(x: float) -> float:
  """The decimal number that was rounded to float32."""
  return float(f'{x:.7g}')


def _read_scaling(
  keys: Keys, head_dim: int, base: float, freqs: np.ndarray | None
) -> str:
  kind = keys.get('rope.scaling.type', str, 'linear')
  # The second name is that of older files.
  old = keys.get('rope.scale_linear', float, 1.0)
  factor = keys.get('rope.scaling.factor', float, old)
  if kind not in ('none', 'linear') and factor:
    raise keys.refuse(
      f'RoPE is scaled by the rule {quoted(kind)}, which rgpt lacks'
    )
  linear = kind == 'linear' and factor not in (0.0, 1.0)
  if freqs is None:
    return f'linear:{_short(factor):g}' if linear else ''
  largest = float(freqs.max(initial=0))
  context = keys.get(
    'rope.scaling.original_context_length', int, int(LLAMA3_RULE[2])
  )
  if largest >= 1 and not linear and freqs.shape == (head_dim // 2,):
    for tried in {context, int(LLAMA3_RULE[2])}:
      scaling = f'llama3:{_short(largest):g},{LLAMA3_RULE[0]:g},' + (
        f'{LLAMA3_RULE[1]:g},{tried}'
      )
      expected = frequency_factors(head_dim, base, scaling)
      if tried > 0 and np.allclose(freqs, expected, rtol=1e-5, atol=0):
        return scaling
  raise keys.refuse(
    f'the factors of {ROPE_FREQS} follow no rule that we know (Llama 3: '
    f'LOW, HIGH, CONTEXT = {LLAMA3_RULE})'
  )


def frequency_factors(head_dim: int, base: float, scaling: str) -> np.ndarray:
  """float32[K / 2]: what llama.cpp divides the frequencies by."""
  plain, scaled = (
    rope_frequencies(head_dim, base, s).astype(np.float64)
    for s in ('', scaling)
  )
  return (plain / scaled).astype(np.float32)


def tensors_of(
  name: str, block: Mapping[str, Any]
) -> dict[str, tuple[str, ...]]:
  """{name after 'blk.{i}.': our leaves in it, in the order of its rows}."""
  found = {
    suffix: leaves
    for suffix, leaves in (FUSED if name == 'gpt2' else {}).items()
    if all(leaf in block for leaf in leaves)
  }
  inside = {leaf for leaves in found.values() for leaf in leaves}
  alone = [leaf for leaf in block if leaf not in inside]
  return found | {LEAVES[leaf]: (leaf,) for leaf in alone}


# --- writing


def choose(cfg: GPTConfig) -> str:
  """The architecture that computes what our model computes.

  Raises:
    UserError: there is none; the message names the options.
  """
  found = {name: _misfits(name, cfg) for name in ARCHITECTURES}
  best = min(found, key=lambda name: len(found[name]))
  if found[best]:
    hint = (
      '. --drop_softcap leaves the soft cap out' if cfg.logit_softcap else ''
    )
    raise UserError(
      "none of llama.cpp's architectures computes this model; the closest, "
      f'{best}, does not because {"; ".join(found[best])}{hint}'
    )
  return best


def _misfits(name: str, cfg: GPTConfig) -> list[str]:
  """Options that an architecture cannot have, each as a reason."""
  # It has the name of a class of transformers, which may have more options.
  reasons = families.misfits(families.FAMILIES[name], cfg)
  mlp = ARCHITECTURES[name].options['mlp']
  if cfg.mlp != mlp and not any('model.mlp ' in x for x in reasons):
    reasons.append(f'model.mlp is {cfg.mlp!r}, not {mlp!r}')
  if name == 'qwen3' and cfg.rope_scaling.startswith('llama3'):
    reasons.append(f'model.rope_scaling is {cfg.rope_scaling!r}')
  if (
    name == 'arcee' and cfg.bias and not any('model.bias' in x for x in reasons)
  ):
    reasons.append('model.bias is True')
  return reasons


def model_keys(cfg: GPTConfig, name: str) -> dict[str, Any]:
  """The metadata of a model, without tokenizer."""
  keys: dict[str, Any] = {
    'block_count': cfg.n_layer,
    'context_length': cfg.block_size,
    'embedding_length': cfg.n_embd,
    'feed_forward_length': cfg.mlp_width,
    'vocab_size': cfg.vocab_size,
    'attention.head_count': cfg.n_head,
    'attention.head_count_kv': cfg.kv_heads,
    'attention.key_length': cfg.head_dim,
    'attention.value_length': cfg.head_dim,
    ARCHITECTURES[name].eps: float(cfg.norm_eps),
  }
  if cfg.pos == 'rope':
    keys['rope.dimension_count'] = cfg.head_dim
    keys['rope.freq_base'] = float(cfg.rope_base)
    kind, values = parse_scaling(cfg.rope_scaling)
    if kind == 'linear':
      keys['rope.scaling.type'] = 'linear'
      keys['rope.scaling.factor'] = float(values[0])
    elif kind == 'llama3':
      keys['rope.scaling.original_context_length'] = int(values[3])
  return {f'{name}.{key}': value for key, value in keys.items()}


# --- order of the rows of q and k


def interleaved_heads(name: str, cfg: GPTConfig, leaf: str) -> int:
  """The heads whose rows a tensor has as rotated pairs; 0: none."""
  heads = {'q': cfg.n_head, 'k': cfg.kv_heads}.get(leaf[1:], 0)  # wq, bq, ...
  return heads if ARCHITECTURES[name].interleaved else 0


def interleave(x: np.ndarray, n_heads: int) -> np.ndarray:
  """Rows (i, i + K/2) of each head side by side; x is [heads K, ...]."""
  half = x.shape[0] // n_heads // 2
  parts = x.reshape(n_heads, 2, half, *x.shape[1:])
  return parts.swapaxes(1, 2).reshape(x.shape)


def deinterleave(x: np.ndarray, n_heads: int) -> np.ndarray:
  """The inverse of `interleave`."""
  half = x.shape[0] // n_heads // 2
  parts = x.reshape(n_heads, half, 2, *x.shape[1:])
  return parts.swapaxes(1, 2).reshape(x.shape)
