"""Loads a run's model for use: weights and tokenizer, no data or optimizer.

Generation, evaluation, inspection and serving all load a run here. Damaged
checkpoints are skipped.
"""

import dataclasses
import hashlib
import os
import pathlib
from typing import Any

import jax
import numpy as np

from gpt.data import record
from gpt.errors import UserError
from gpt.model import GPT, GPTConfig
from gpt.model.params import Params
from gpt.runs import base, checkpoint
from gpt.runs.checkpoint import BEST, first_readable
from gpt.runs.config_file import flatten, read_configs
from gpt.tokenizers import Tokenizer, load_tokenizer
from gpt.training import lora


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedModel:
  """A trained model and all that is needed to use it.

  Attributes:
    model, cfg: the linen module and its config, resolved for this backend.
    params: numpy tree of float32; the EMA if the run keeps one. Adapters are
      merged into their base.
    tokenizer: the run's own.
    config: the run's configuration as nested dicts (see configs/default.py).
    data: the record of the training text: {} or 'kind', 'description' and
      'text_sha256'.
    meta: of the checkpoint: 'step', 'best_loss', 'elapsed_s', ...
    path: directory of the checkpoint.
  """

  model: GPT
  cfg: GPTConfig
  params: Params
  tokenizer: Tokenizer
  config: dict
  data: dict
  meta: dict
  path: pathlib.Path

  @property
  def step(self) -> int:
    """Completed training steps of these weights."""
    return int(self.meta['step'])

  @property
  def which(self) -> str:
    """'best' or 'latest': where the checkpoint was found."""
    return self.path.parent.name

  @property
  def name(self) -> str:
    """Name of the model, such as RandyGPT's 'randygpt-6L-8H-256D'."""
    cfg = self.cfg
    family = 'randygpt' if cfg.arch == 'randy' else cfg.arch
    if cfg.norm_gain:  # A pretrained model of another family.
      family = 'gpt'
    return f'{family}-{cfg.n_layer}L-{cfg.n_head}H-{cfg.n_embd}D'


def load_model(
  workdir: str | os.PathLike, which: str = BEST, base_at: str = ''
) -> LoadedModel:
  """Reads a run's best or latest model.

  Skips checkpoints that cannot be read, with a warning: after the best comes
  the latest, and vice versa.

  Args:
    workdir: directory of a run.
    which: 'best' (the lowest validation loss) or 'latest'.
    base_at: where the base of a LoRA run is now; '': where its base.json says.

  Raises:
    UserError: no such run, no checkpoint, or none that can be read; no base.
  """
  workdir = pathlib.Path(workdir)
  paths = checkpoint.candidates(workdir, which)
  tokenizer = load_tokenizer(workdir)
  config, cfg = read_configs(workdir, tokenizer.vocab_size)
  model = GPT(cfg)
  trained = lora.adapted(model, config.get('opt', {}))
  path, (params, meta) = first_readable(
    paths, lambda path: read_checkpoint(path, trained)
  )
  if isinstance(trained, lora.Adapted):
    whole = base.load_base(workdir, cfg, base_at)
    params = lora.merge(whole, params, trained.alpha)
  data = record.read(workdir)
  return LoadedModel(model, cfg, params, tokenizer, config, data, meta, path)


def load_adapter(
  workdir: str | os.PathLike,
  whole: LoadedModel,
  fingerprint: str,
  which: str = BEST,
) -> LoadedModel:
  """A LoRA run's model, merged into a base that is loaded already.

  Merged matrices have the dtype of the base's.

  Args:
    whole: the base. fingerprint: of it, from base.fingerprint.

  Raises:
    UserError: not such a run, adapters of another base, or as load_model.
  """
  if not base.has_record(workdir):
    raise UserError(
      f'{workdir} holds no adapters: train them with --config.opt.lora_rank=8'
    )
  found = base.read_record(workdir)
  if found.fingerprint != fingerprint:
    raise UserError(
      f'the adapters in {workdir} belong to another base: they were trained on '
      f'{found.source}'
    )
  config, cfg = read_configs(workdir, whole.cfg.vocab_size)
  trained = lora.adapted(whole.model, config.get('opt', {}))
  path, (params, meta) = first_readable(
    checkpoint.candidates(workdir, which),
    lambda path: read_checkpoint(path, trained),
  )
  assert isinstance(trained, lora.Adapted)
  merged = lora.merge(whole.params, params, trained.alpha)
  merged = jax.tree.map(
    lambda x, old: x.astype(old.dtype, copy=False), merged, whole.params
  )
  data = record.read(workdir)
  return dataclasses.replace(
    whole, params=merged, config=config, data=data, meta=meta, path=path
  )


def read_checkpoint(
  path: str | os.PathLike, model: GPT | lora.Adapted
) -> tuple[Params, dict[str, Any]]:
  """(trained params, meta) of one checkpoint, checked against the config.

  Raises:
    ValueError: arrays of other shapes. DamagedCheckpoint or Orbax's errors if
      bytes are missing or changed.
  """
  meta = checkpoint.read_meta(path)
  params = checkpoint.restore_params(path)
  if model.cfg.n_layer > len(params):  # Before a model of that depth is built.
    raise ValueError(
      f'n_layer is {model.cfg.n_layer}: it has {len(params)} parts'
    )
  found = flatten(jax.tree.map(_kind, params))
  wanted = flatten(jax.tree.map(_kind, lora.abstract(model)))
  for name in sorted(found.keys() | wanted.keys()):
    if found.get(name) != wanted.get(name):
      raise ValueError(
        f'{name}: expected {wanted.get(name)} from the config, found '
        f'{found.get(name)}'
      )
  return params, meta


def _kind(x: Any) -> str:
  return f'{np.dtype(x.dtype).name}{list(x.shape)}'


def params_sha256(params: Params) -> str:
  """sha256 (hex) of a parameter tree; equal for equal models.

  Over the raw bytes (float32, little-endian, C order, nothing between them) of
  the leaves in the order of their '/'-joined names, sorted as text:
  'block_0/fc1', 'block_0/fc2', 'block_0/wk', ..., 'lm_head', 'wpe', 'wte'.
  """
  leaves = {
    name.replace('.', '/'): leaf for name, leaf in flatten(params).items()
  }
  digest = hashlib.sha256()
  for name in sorted(leaves):
    digest.update(np.ascontiguousarray(leaves[name], '<f4').tobytes())
  return digest.hexdigest()
