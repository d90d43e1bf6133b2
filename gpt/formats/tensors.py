"""Weights as named tensors in safetensors files.

Files hold matrices as [out, in]; our parameters are [in, out]. Tensors have
microgpt's names: `wte`, `wpe`, `lm_head`, `layer0.attn_wq`, ...
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np

from gpt.errors import UserError
from gpt.files import replacing
from gpt.formats.tensor_files import LENGTH_BYTES, TensorFiles, read_header
from gpt.model import GPT, GPTConfig, abstract_params
from gpt.model.params import Params

LEAVES = {
  'wq': 'attn_wq',
  'wk': 'attn_wk',
  'wv': 'attn_wv',
  'wo': 'attn_wo',
  'fc1': 'mlp_fc1',
  'gate': 'mlp_gate',
  'fc2': 'mlp_fc2',
  'bq': 'attn_bq',
  'bk': 'attn_bk',
  'bv': 'attn_bv',
  'bo': 'attn_bo',
  'b1': 'mlp_b1',
  'bgate': 'mlp_bgate',
  'b2': 'mlp_b2',
  'q_gain': 'attn_q_gain',
  'k_gain': 'attn_k_gain',
  'attn_norm': 'attn_norm',
  'attn_norm_bias': 'attn_norm_bias',
  'mlp_norm': 'mlp_norm',
  'mlp_norm_bias': 'mlp_norm_bias',
}
PROBE_SHAPE = (4, 256)  # Rows and most columns of the half precision probe.

# Dtypes of exports, by their names on the command line.
DTYPES = {
  'f32': np.dtype(np.float32),
  'f16': np.dtype(np.float16),
  'bf16': np.dtype(ml_dtypes.bfloat16),
}
# The same, by their names in a file's header.
NAMES = {'f32': 'F32', 'f16': 'F16', 'bf16': 'BF16'}

# Dtypes of parameters in memory, by their names in config.model.param_dtype.
PARAM_DTYPES = {
  'float32': np.dtype(np.float32),
  'bfloat16': np.dtype(ml_dtypes.bfloat16),
}

Tensors = dict[str, np.ndarray]
Path = str | os.PathLike[str]


# --- names and shapes


def to_tensors(params: Params) -> Tensors:
  """Our parameter tree under the files' names, matrices as [out, in]."""
  tensors = {}
  for name, value in params.items():
    if not name.startswith('block_'):
      tensors[name] = np.asarray(value)
      continue
    layer = name.replace('block_', 'layer')
    for leaf, x in value.items():
      tensors[f'{layer}.{LEAVES[leaf]}'] = np.asarray(x).T
  return tensors


def from_tensors(
  tensors: Tensors,
  cfg: GPTConfig,
  source: Path,
  dtype: Any = np.float32,
) -> dict[str, Any]:
  """The parameter tree of a model.

  Args:
    tensors: emptied on the way, so that both are never held in full.
    source: where the tensors come from, for errors.
    dtype: of the parameters.

  Raises:
    UserError: tensors or shapes that do not fit the config.
  """
  if cfg.n_layer > len(tensors):  # Before a model of that depth is built.
    raise UserError(
      f'{source} has {len(tensors)} tensors, too few for n_layer {cfg.n_layer}'
    )
  wanted = {name: x.shape for name, x in to_tensors(_zeros(cfg)).items()}
  for name in sorted(wanted.keys() | tensors.keys()):
    if name not in tensors:
      raise UserError(
        f'{source}: {name} is missing: expected {wanted[name]} from the config'
      )
    if name not in wanted:
      raise UserError(
        f'{source}: unexpected tensor {name} {tensors[name].shape}: the model '
        'of the config has none of this name'
      )
    if tensors[name].shape != wanted[name]:
      raise UserError(
        f'{source}: {name}: expected {wanted[name]} from the config, found '
        f'{tensors[name].shape}'
      )
  ours = {leaf: name for name, leaf in LEAVES.items()}
  params: dict[str, Any] = {}
  for name in wanted:
    layer, _, leaf = name.partition('.')
    x = np.asarray(tensors.pop(name), dtype)
    if leaf:
      block = params.setdefault(layer.replace('layer', 'block_'), {})
      block[ours[leaf]] = np.ascontiguousarray(x.T)
    else:
      params[name] = x
  return params


def _zeros(cfg: GPTConfig) -> dict[str, Any]:
  """A parameter tree of zeros that takes no memory."""
  return jax.tree.map(
    lambda x: np.broadcast_to(np.float32(0), x.shape),
    dict(abstract_params(cfg)),
  )


# --- half precision


def round_to(tensors: Tensors, dtype: str) -> Tensors:
  """Converts float32 tensors, rounding to nearest.

  Args:
    dtype: a key of DTYPES.

  Raises:
    UserError: a number too large for the dtype.
  """
  rounded = {}
  for name, x in tensors.items():
    x = np.asarray(x, np.float32)
    with np.errstate(over='ignore'):
      rounded[name] = x.astype(DTYPES[dtype], copy=False)
    if not np.isfinite(rounded[name]).all() and np.isfinite(x).all():
      raise UserError(
        f'{name} holds {np.abs(x).max():.3g}, too large for {dtype}; use '
        '--dtype=bf16 or --dtype=f32'
      )
  return rounded


def rounding_report(
  cfg: GPTConfig, params: Params, dtype: str
) -> dict[str, Any]:
  """Measures how rounding the weights to `dtype` changes float32 logits.

  Returns:
    'dtype', and what `compare_logits` finds.
  """
  rounded = from_tensors(round_to(to_tensors(params), dtype), cfg, 'weights')
  return {'dtype': dtype, **compare_logits((cfg, params), (cfg, rounded))}


def compare_logits(
  exact: tuple[GPTConfig, Params], other: tuple[GPTConfig, Params]
) -> dict[str, Any]:
  """Compares the float32 logits of two models of one vocabulary.

  Uses up to 4 x 256 positions of seeded random tokens.

  Returns:
    'max_error' (largest difference of a logit), 'max_logit' (largest absolute
    logit of `exact`), 'same_argmax' (fraction of positions with the same
    likeliest token), 'mean_kl' (mean divergence KL(exact || other) in nats),
    'positions' (their number).
  """
  shape = PROBE_SHAPE[0], min(PROBE_SHAPE[1], exact[0].block_size)
  tokens = np.random.default_rng(0).integers(0, exact[0].vocab_size, shape)
  a, b = (_exact_logits(cfg, params, tokens) for cfg, params in (exact, other))
  log_a, log_b = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
  same = a.argmax(-1) == b.argmax(-1)
  return {
    'max_error': float(np.abs(a - b).max()),
    'max_logit': float(np.abs(a).max()),
    'same_argmax': float(same.mean()),
    'mean_kl': float((np.exp(log_a) * (log_a - log_b)).sum(-1).mean()),
    'positions': int(same.size),
  }


def _exact_logits(
  cfg: GPTConfig, params: Params, tokens: np.ndarray
) -> np.ndarray:
  cfg = dataclasses.replace(
    cfg, dtype='float32', attention='plain', dropout=0.0, remat=False
  )
  with jax.default_matmul_precision('highest'):
    forward = jax.jit(GPT(cfg).apply)
    return np.asarray(forward({'params': params}, tokens.astype(np.int32)))


def rounding_note(report: Mapping[str, Any]) -> str:
  """One line about what `rounding_report` found."""
  return (
    f'{report["dtype"]}: rounding the weights changes logits by at most '
    f'{report["max_error"]:.3g} (logits up to {report["max_logit"]:.3g}) over '
    f'{report["positions"]:,} positions; the likeliest token is the same at '
    f'{100 * report["same_argmax"]:.1f} % of them'
  )


# --- files


def write_tensors(
  path: Path,
  tensors: Tensors,
  dtype: str,
  metadata: Mapping[str, str] | None = None,
) -> int:
  """Writes a whole safetensors file or leaves an older one unchanged.

  Equal arguments give equal bytes.

  Args:
    tensors: name -> float32 array; converted to `dtype`.
    metadata: entries of the file's header.

  Returns:
    The size of the file in bytes.

  Raises:
    UserError: numbers too large for the dtype; a place that cannot be written
      to.
  """
  header: dict[str, Any] = {'__metadata__': dict(metadata or {})}
  end = 0
  for name, x in tensors.items():
    size = x.size * DTYPES[dtype].itemsize
    header[name] = {
      'dtype': NAMES[dtype],
      'shape': list(x.shape),
      'data_offsets': [end, end + size],
    }
    end += size
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % LENGTH_BYTES)  # Tensors start aligned.
  try:
    with replacing(path) as file:
      file.write(len(text).to_bytes(LENGTH_BYTES, 'little') + text)
      # One at a time: rounding and transposing copy only this one.
      for name, x in tensors.items():
        file.write(round_to({name: x}, dtype)[name].tobytes())
  except OSError as e:
    raise UserError(f'cannot write {path}: {e.strerror or e}') from e
  return LENGTH_BYTES + len(text) + end


def read_tensors(path: Path) -> Tensors:
  """{name: float32 array} of a safetensors file; other floats are converted.

  Raises:
    UserError: a missing or damaged file, or tensors that are not floats.
  """
  files = TensorFiles(read_header(path))
  return {name: files.read(name).astype(np.float32) for name in files.shapes}


def write_model_file(
  path: Path,
  cfg: GPTConfig,
  params: Params,
  dtype: str,
  record: Mapping[str, Any],
) -> int:
  """Writes one file of weights; returns its size in bytes.

  Its header holds the architecture and, as JSON under 'rgpt', `record`.
  """
  metadata = {'format': 'pt', 'rgpt': json.dumps(record)}
  metadata |= {
    name: str(value) for name, value in dataclasses.asdict(cfg).items()
  }
  return write_tensors(path, to_tensors(params), dtype, metadata)
