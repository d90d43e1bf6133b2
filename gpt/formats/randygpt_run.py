"""Conversion between RandyGPT files and runs.

An imported workdir is one that training could have left after iter + 1 steps:
resuming it continues with the same moments and Adam step.
"""

import math
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from gpt.errors import UserError
from gpt.formats import randygpt
from gpt.formats.randygpt import Path
from gpt.model import GPT, GPTConfig
from gpt.runs import checkpoint, create
from gpt.runs.config_file import read_configs
from gpt.runs.load import LoadedModel
from gpt.tokenizers import Tokenizer, load_tokenizer
from gpt.training import optimizer
from gpt.training.state import TrainState, create_state, state_from_params

MAX_STEP = 2**31 - 1
# Metadata of imports: the bits of the file's best loss. JSON has neither NaN
# payloads nor float32.
BEST_LOSS_BITS = 'rgpt_best_loss_bits'
EMA_NOTE = (
  'the weights of training, not their average (opt.ema_decay), which the '
  'format cannot hold'
)
MOMENTS_NOTE = (
  "without the optimizer's state, since the format holds only Adam's "
  '(opt.name): training continues from it with a fresh optimizer'
)

MERGED_NOTE = (
  'the adapters are merged into their base; training continues from it with a '
  'fresh optimizer and all weights'
)


def import_rgpt(
  path: Path, config: Any, tokenizer: Tokenizer, workdir: Path
) -> int:
  """Makes a new run from an RGPT file.

  The state is saved as the latest checkpoint, and as the best one too if the
  file has a best loss.

  Args:
    path: an RGPT0001, 0002 or 0003 file.
    config: ConfigDict with the model's shape; saved as the run's.
    tokenizer: of the model; its vocabulary size must be the file's.
    workdir: of the new run; must not hold one.

  Returns:
    Completed steps: training continues with iteration iter + 1.

  Raises:
    UserError: a damaged file, another shape, or a workdir in use.
  """
  cfg = GPTConfig.from_config(config.model, tokenizer.vocab_size)
  if reasons := randygpt.obstacles(cfg):
    raise UserError(
      f'an RGPT file cannot hold this model: {"; ".join(reasons)}'
    )
  ckpt = randygpt.read_rgpt(
    path, cfg.n_embd, cfg.n_layer, cfg.block_size, cfg.vocab_size
  )
  state = _state_of(ckpt, config, path)
  create.check_free(workdir)
  best_loss = float(ckpt.best_loss)
  bits: dict[str, Any] = {BEST_LOSS_BITS: int(ckpt.best_loss.view(np.uint32))}
  create.create(
    workdir,
    config,
    tokenizer,
    state,
    best_loss if math.isfinite(best_loss) else None,
    source=path,
    **bits,
  )
  return int(state.step)


def export_rgpt(
  workdir: Path, which: str, output: Path
) -> tuple[str, int, list[str]]:
  """Writes a run's best or latest checkpoint as an RGPT0003 file.

  The file holds the weights and Adam's moments of training, not an average of
  the weights (opt.ema_decay). An existing file is replaced.

  Returns:
    ('best' or 'latest': the checkpoint that was found, its completed steps,
    notes for the user).

  Raises:
    UserError: no such run, a model that the format cannot represent, or a
      place that cannot be written to.
  """
  paths = checkpoint.candidates(workdir, which)
  saved, cfg = read_configs(workdir, load_tokenizer(workdir).vocab_size)
  if reasons := randygpt.obstacles(cfg):
    raise UserError(
      f'the model of {workdir} cannot be written as an RGPT file: '
      f'{"; ".join(reasons)}'
    )
  target = _abstract_state(ConfigDict(saved), cfg)
  path, (state, meta) = checkpoint.first_readable(
    paths, lambda path: checkpoint.restore_state(path, target)
  )
  best_loss = np.float32(meta.get('best_loss', math.inf))
  if BEST_LOSS_BITS in meta:
    best_loss = np.uint32(meta[BEST_LOSS_BITS]).view(np.float32)
  write_state(output, state, best_loss)
  return path.parent.name, int(state.step), notes_on(state)


def write_state(
  path: Path, state: TrainState, best_loss: float | np.floating
) -> None:
  """Writes an RGPT0003 file with a state's weights, moments and counters.

  For optimizers without Adam's moments of every tensor, zeros and Adam step 0
  are written.
  """
  adam: Any = optimizer.adam_state(state.opt_state)
  moments = (None, None) if adam is None else (adam.mu, adam.nu)
  randygpt.write_rgpt(
    path,
    randygpt.from_params(
      state.params,
      *moments,
      # A run without a single step has no last completed iteration.
      iter=max(int(np.asarray(state.step)) - 1, 0),
      adam_step=0 if adam is None else int(adam.count),
      best_loss=best_loss,
    ),
  )


def write_merged(path: Path, loaded: LoadedModel) -> list[str]:
  """Writes an RGPT0003 file with the weights of a LoRA run; returns notes."""
  randygpt.write_rgpt(
    path,
    randygpt.from_params(
      loaded.params,
      iter=max(loaded.step - 1, 0),
      adam_step=0,
      best_loss=np.float32(loaded.meta.get('best_loss', math.inf)),
    ),
  )
  return [MERGED_NOTE]


def notes_on(state: TrainState) -> list[str]:
  """Notes on the parts of a TrainState that an RGPT file cannot hold."""
  notes = [] if state.ema is None else [EMA_NOTE]
  if optimizer.adam_state(state.opt_state) is None:
    notes.append(MOMENTS_NOTE)
  return notes


def _state_of(
  ckpt: randygpt.RgptCheckpoint, config: Any, path: Path
) -> TrainState:
  """The TrainState (numpy) of training after the file's iter."""
  for name in ('iter', 'adam_step'):
    if getattr(ckpt, name) >= MAX_STEP:
      raise UserError(
        f'checkpoint {path} is damaged: its {name} is {getattr(ckpt, name)}'
      )
  params, mu, nu = randygpt.to_params(ckpt)
  state: Any = state_from_params(
    params, optimizer.create(config), ema=config.opt.ema_decay > 0
  )
  opt_state = state.opt_state
  if mu is not None:
    if optimizer.adam_state(opt_state) is None:
      raise UserError(
        f'opt.name {config.opt.name!r} cannot use the Adam moments of an RGPT '
        'file; use adamw, or start a new run from the weights alone: '
        f'launch.train --init_from={path}'
      )
    opt_state = optimizer.with_adam_state(opt_state, mu, nu, ckpt.adam_step)
  return jax.device_get(
    state.replace(step=np.asarray(ckpt.iter + 1, np.int32), opt_state=opt_state)
  )


def _abstract_state(config: Any, cfg: GPTConfig) -> TrainState:
  """A TrainState of ShapeDtypeStructs."""

  def make(key: jax.Array) -> TrainState:
    ema = config.opt.ema_decay > 0
    return create_state(GPT(cfg), optimizer.create(config), key, ema=ema)

  return jax.eval_shape(make, jax.random.key(0))
