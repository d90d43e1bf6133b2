"""Which checkpoints a run has, and their metadata. Imports no JAX.

    W/checkpoints/{latest,best}/STEP/meta/metadata    JSON

    format_version, step            step: completed optimizer steps
    plateau, best_loss, validation  the best so far, and on what it was measured
    elapsed_s                       of training
    model                           the keys that decide what the weights are
    checksum, weights_checksum      CRC-32 of the arrays
    sums                            instead, if several processes wrote them:
                                    that of each item (array_sums.py)
    meta_checksum                   CRC-32 of all entries above

Before 0.3 there was no `model` and no `meta_checksum`. The entry
`sealed_checkpoints` of a run's config.json says that all of them have both, so
that no edit makes one look older than it is.
"""

import json
import math
import os
import pathlib
import re
import zlib
from collections.abc import Mapping
from typing import Any

from gpt.errors import UserError, quoted
from gpt.fields import Fields, read_fields
from gpt.files import read_json
from gpt.model.config import GPTConfig, option_names
from gpt.model.options import FUNCTION, SHAPE
from gpt.runs.format_version import (
  DIVIDED_VERSION,
  FORMAT_KEY,
  FORMAT_VERSION,
  check_version,
)

CONFIG = 'config.json'
LATEST, BEST = 'latest', 'best'
MAX_STEP = 2**31 - 1  # The step is an int32.
MAX_BYTES = 1 << 20
ADAPTERS = ('lora_rank', 'lora_alpha', 'lora_targets')
CHECKSUM, MODEL = 'meta_checksum', 'model'
SEALED = 'sealed_checkpoints'
SUMS = 'sums'


def list_steps(directory: str | os.PathLike) -> list[tuple[str, int]]:
  """[(which, step)] of the finished checkpoints, newest first."""
  found = []
  for which in (LATEST, BEST):
    folder = pathlib.Path(directory) / which
    found += [
      (which, int(p.name))
      for p in folder.glob('*')
      if re.fullmatch('0|[1-9][0-9]{0,9}', p.name)
    ]
  return sorted(found, key=lambda x: (-x[1], x[0] != LATEST))


def steps_by_kind(directory: str | os.PathLike) -> dict[str, list[int]]:
  """{'best': [steps], 'latest': [steps]} of the finished checkpoints."""
  found = list_steps(directory)
  return {
    which: sorted(step for w, step in found if w == which)
    for which in (BEST, LATEST)
  }


def sealed(meta: Mapping[str, Any]) -> dict[str, Any]:
  """`meta` (JSON-able) with the format version and its own checksum."""
  version = DIVIDED_VERSION if SUMS in meta else FORMAT_VERSION
  meta = {**meta, FORMAT_KEY: version}
  return {**meta, CHECKSUM: _checksum(meta)}


def _checksum(meta: Mapping[str, Any]) -> int:
  covered = {name: x for name, x in meta.items() if name != CHECKSUM}
  return zlib.crc32(json.dumps(covered, sort_keys=True).encode())


def are_sealed(workdir: str | os.PathLike) -> bool:
  """Whether config.json says that every checkpoint has a checksum."""
  try:
    config = read_json(pathlib.Path(workdir) / CONFIG, infinite=True)
  except UserError:
    return False
  return bool(config.get(SEALED))


def may_be_sealed(workdir: str | os.PathLike) -> bool:
  """Whether every checkpoint that a run has now has a checksum, or none is."""
  directory = pathlib.Path(workdir) / 'checkpoints'
  try:
    return all(
      CHECKSUM in _fields(directory / which / str(step)).values
      for which, step in list_steps(directory)
    )
  except UserError:
    return False


def _fields(path: str | os.PathLike) -> Fields:
  file = pathlib.Path(path) / 'meta' / 'metadata'
  return read_fields(file, max_bytes=MAX_BYTES, infinite=True)


def options_of(cfg: GPTConfig, opt: Mapping[str, Any]) -> dict[str, Any]:
  """{'model.n_embd': 256, ...}: the keys that decide what the weights are.

  Args:
    opt: `config.opt`, a ConfigDict or dict; adapters (LoRA) depend on it too.
  """
  names = option_names(SHAPE, FUNCTION)
  found = {f'model.{name}': getattr(cfg, name) for name in names}
  found['opt.lora_rank'] = opt.get('lora_rank', 0)
  if found['opt.lora_rank']:
    found |= {f'opt.{name}': opt[name] for name in ADAPTERS}
  return found


def read_meta(path: str | os.PathLike) -> dict[str, Any]:
  """The metadata of one checkpoint directory; every known entry is checked.

  Raises:
    NewerFormat: a newer version of rgpt wrote it.
    UserError: a file that is missing or damaged.
  """
  fields = _fields(path)
  meta, workdir = dict(fields.values), pathlib.Path(path).parents[2]
  check_version(meta.get(FORMAT_KEY, 1), path, DIVIDED_VERSION)
  if CHECKSUM in meta or MODEL in meta or are_sealed(workdir):
    if meta.get(CHECKSUM) != _checksum(meta):
      raise UserError(
        f'{fields.where} has changed since it was written: its {CHECKSUM} is '
        f'{quoted(meta.get(CHECKSUM))}, its content has {_checksum(meta)}'
      )
  fields.integer('step', 0, MAX_STEP)
  _loss(fields)
  fields.text('validation', '')
  fields.number('elapsed_s', 0, math.inf, 0)
  fields.integer('checksum', 0, 2**32 - 1, None)
  fields.integer('weights_checksum', 0, 2**32 - 1, None)
  fields.mapping(MODEL, {})
  sums = fields.mapping(SUMS, {})
  for name in sums.values:
    sums.integer(name, 0, 2**32 - 1)
  if 'plateau' in fields:
    plateau = fields.mapping('plateau')
    known = {
      'best_loss': _loss(plateau),
      'best_step': plateau.integer('best_step', -1, MAX_STEP, -1),
      'evals_since_best': plateau.integer('evals_since_best', 0, MAX_STEP, 0),
      'reductions': plateau.integer('reductions', 0, MAX_STEP, 0),
      'stopped': plateau.flag('stopped', False),
    }
    meta['plateau'] = {name: x for name, x in known.items() if name in plateau}
  return meta


def _loss(fields: Fields) -> float:
  return fields.number('best_loss', -math.inf, math.inf, math.inf)


def check_model(
  workdir: str | os.PathLike, cfg: GPTConfig, opt: Mapping[str, Any]
) -> None:
  """Compares a run's model with what its checkpoints say they hold.

  Damaged checkpoints and those of older versions say nothing.

  Raises:
    UserError: the weights were trained as another model.
  """
  workdir = pathlib.Path(workdir)
  directory = workdir / 'checkpoints'
  now = options_of(cfg, opt)
  for which, step in list_steps(directory):
    path = directory / which / str(step)
    try:
      trained = read_meta(path).get(MODEL, {})
    except UserError:
      continue
    for name, value in now.items():
      if name in trained and trained[name] != value:
        raise UserError(
          f'{workdir / "config.json"}: {name} is {value!r}, but the '
          f'weights in {path} are of a model with {quoted(trained[name])}: put '
          'that value back'
        )
