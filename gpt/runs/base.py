"""base.json: the frozen weights that the adapters of a LoRA run belong to.

The file names them and holds a fingerprint; the weights stay where they are.
"""

import dataclasses
import hashlib
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from gpt.errors import UserError
from gpt.fields import read_fields
from gpt.files import write_atomic
from gpt.model import GPTConfig
from gpt.model.config import option_names
from gpt.model.options import FUNCTION
from gpt.model.params import Params
from gpt.runs.weights import load_weights

FILE = 'base.json'


@dataclasses.dataclass(frozen=True)
class Base:
  """The place and the fingerprint of a run's base.

  Attributes:
    source: what --init_from was, a local path made absolute.
    beside: the same path relative to the run's directory, for a run and its
      base that moved together; '' if it is not a path.
    fingerprint: of `fingerprint`.
  """

  source: str
  beside: str
  fingerprint: str


def fingerprint(cfg: GPTConfig, params: Params) -> str:
  """sha256 (hex) of a model: equal for equal weights and equal functions.

  Over the options that change the function and are not at their defaults, as
  JSON, then over every array in the order of their '/'-joined names: its name,
  shape and values as float32 (little-endian, C order). So bfloat16 weights have
  the fingerprint of the same values in float32, and the context of a model with
  RoPE does not matter.
  """
  usual = GPTConfig(cfg.vocab_size)
  options = {
    name: getattr(cfg, name)
    for name in option_names(FUNCTION)
    if getattr(cfg, name) != getattr(usual, name)
  }
  digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
  leaves, _ = jax.tree.flatten_with_path(params)
  named = {'/'.join(key.key for key in path): x for path, x in leaves}
  for name in sorted(named):
    digest.update(f'{name}{list(named[name].shape)}'.encode())
    digest.update(np.ascontiguousarray(named[name], '<f4').data)
  return digest.hexdigest()


def record(workdir: str | os.PathLike, source: str, fingerprint: str) -> None:
  """Writes base.json for a run whose base is `source`."""
  beside = ''
  if pathlib.Path(source).exists():
    source = os.path.abspath(source)
    beside = os.path.relpath(source, os.path.abspath(workdir))
  base = Base(source, beside, fingerprint)
  text = json.dumps(dataclasses.asdict(base), indent=2) + '\n'
  write_atomic(pathlib.Path(workdir) / FILE, text.encode())


def has_record(workdir: str | os.PathLike) -> bool:
  """Whether the checkpoints of a run hold adapters."""
  return (pathlib.Path(workdir) / FILE).is_file()


def read_record(workdir: str | os.PathLike) -> Base:
  """Reads base.json. Raises UserError if it is missing or damaged."""
  path = pathlib.Path(workdir) / FILE
  fields = read_fields(path)
  return Base(*(fields.text(f.name) for f in dataclasses.fields(Base)))


def load_base(
  workdir: str | os.PathLike, cfg: GPTConfig, where: str = ''
) -> Params:
  """The base of a LoRA run: numpy, as it was when the run began.

  Args:
    cfg: of the run.
    where: its place now (--base); '': where base.json says.

  Raises:
    UserError: it is not there, or it has changed.
  """
  base = read_record(workdir)
  problems = []
  for source in [where] if where else _places(workdir, base):
    try:
      params = load_weights(source, cfg)
    except UserError as e:
      problems.append(f'{source}: {e}')
      continue
    if fingerprint(cfg, params) == base.fingerprint:
      return stored_as(cfg, params)
    problems.append(f'{source} holds other weights now')
  raise UserError(
    f'the base of the adapters in {workdir} is not there: '
    + '; '.join(problems)
    + '. If it has moved, name its place with --base=PATH'
  )


def stored_as(cfg: GPTConfig, params: Params) -> Params:
  """The params in the dtype in which the run holds its base in memory."""
  dtype = jnp.dtype(cfg.param_dtype)
  return jax.tree.map(lambda x: np.asarray(x).astype(dtype, copy=False), params)


def _places(workdir: str | os.PathLike, base: Base) -> list[str]:
  """The places where the base may be: as recorded, or beside the run."""
  places = [base.source]
  if base.beside:
    beside = os.path.abspath(os.path.join(workdir, base.beside))
    if beside != base.source and os.path.exists(beside):
      places.append(beside)
  return places
