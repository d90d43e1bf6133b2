"""A RandyGPT file becomes a run, and a run becomes a RandyGPT file.

The workdir that an import leaves is one that training could have left after
iter + 1 steps: resuming it continues with the same moments and Adam step.
"""

import math

import jax
import numpy as np
from ml_collections import ConfigDict

from gpt.errors import UserError
from gpt.formats import randygpt
from gpt.model import GPT, GPTConfig
from gpt.runs import checkpoint
from gpt.runs import create as new_run
from gpt.runs.load import first_readable, read_configs
from gpt.tokenizers import load_tokenizer
from gpt.training import optimizer
from gpt.training.state import create_state, state_from_params

MAX_STEP = 2**31 - 1
# Bits of a file's best loss: JSON has no NaN payloads, and numbers there are
# float64. Only metadata written by an import holds it.
BEST_LOSS_BITS = 'rgpt_best_loss_bits'


def import_rgpt(path, config, tokenizer, workdir) -> int:
  """Makes a new run from an RGPT file.

  The state is saved as the latest, and as the best too if the file knows a
  best loss: it is the best there is.

  Args:
    path: an RGPT0001, 0002 or 0003 file.
    config: ConfigDict with the model's shape; saved as the run's.
    tokenizer: of the model; its vocabulary size must be the file's.
    workdir: of the new run; must not hold one.

  Returns:
    Completed steps: training goes on with iteration iter + 1.

  Raises:
    UserError: a bad file or one of another shape, or a workdir in use.
  """
  cfg = GPTConfig.from_config(config.model, tokenizer.vocab_size)
  if reasons := randygpt.obstacles(cfg):
    raise UserError(f'an RGPT file holds another model: {"; ".join(reasons)}')
  ckpt = randygpt.read_rgpt(
    path, cfg.n_embd, cfg.n_layer, cfg.block_size, cfg.vocab_size
  )
  state = _state_of(ckpt, config, path)
  new_run.check_free(workdir)
  best_loss = float(ckpt.best_loss)
  new_run.create(
    workdir,
    config,
    tokenizer,
    state,
    best_loss if math.isfinite(best_loss) else None,
    **{BEST_LOSS_BITS: int(ckpt.best_loss.view(np.uint32))},
  )
  return int(state.step)


EMA_NOTE = (
  'the weights of training, not their average (opt.ema_decay), which the '
  'format has no place for'
)
MOMENTS_NOTE = (
  "without the optimizer's state (opt.name), of which the format has only "
  "Adam's: training goes on from it as at a first step"
)


def notes_on(state) -> list[str]:
  """What an RGPT file of a TrainState does not hold."""
  notes = [] if state.ema is None else [EMA_NOTE]
  if optimizer.adam_state(state.opt_state) is None:
    notes.append(MOMENTS_NOTE)
  return notes


def export_rgpt(workdir, which: str, output) -> tuple[str, int, list[str]]:
  """Writes a run's best or latest checkpoint as an RGPT0003 file.

  Weights and Adam's moments are those of training (an average of the weights,
  opt.ema_decay, has no place in the format).

  Returns:
    ('best' or 'latest': what was found, completed steps, notes on what the
    file holds).

  Raises:
    UserError: no such run, a model that RandyGPT has not, a full disk.
  """
  paths = checkpoint.candidates(workdir, which)
  saved, cfg = read_configs(workdir, load_tokenizer(workdir).vocab_size)
  if reasons := randygpt.obstacles(cfg):
    raise UserError(
      f'the model of {workdir} cannot be written as an RGPT file: '
      f'{"; ".join(reasons)}'
    )
  config = ConfigDict(saved)
  target = _abstract_state(config, cfg)
  path, (state, meta) = first_readable(
    paths, lambda path: checkpoint.restore_state(path, target)
  )
  best_loss = np.float32(meta.get('best_loss', math.inf))
  if BEST_LOSS_BITS in meta:
    best_loss = np.array(meta[BEST_LOSS_BITS], np.uint32).view(np.float32)[()]
  write_state(output, state, best_loss)
  return path.parent.name, int(state.step), notes_on(state)


def write_state(path, state, best_loss) -> None:
  """An RGPT0003 file with a state's weights, moments and counters.

  Optimizers without Adam's moments for every tensor leave zeros and step 0.
  """
  adam = optimizer.adam_state(state.opt_state)
  moments = (None, None) if adam is None else (adam.mu, adam.nu)
  randygpt.write_rgpt(
    path,
    randygpt.from_params(
      state.params,
      *moments,
      # A run without a single step has no last completed iteration.
      iter=max(int(state.step) - 1, 0),
      adam_step=0 if adam is None else int(adam.count),
      best_loss=best_loss,
    ),
  )


def _state_of(ckpt: randygpt.RgptCheckpoint, config, path):
  """The TrainState (numpy) that training would have after the file's iter."""
  for name in ('iter', 'adam_step'):
    if getattr(ckpt, name) >= MAX_STEP:
      raise UserError(
        f'checkpoint {path} is damaged: its {name} is {getattr(ckpt, name)}'
      )
  params, mu, nu = randygpt.to_params(ckpt)
  state = state_from_params(
    params, optimizer.create(config), ema=config.opt.ema_decay > 0
  )
  opt_state = state.opt_state
  if mu is not None:
    if optimizer.adam_state(opt_state) is None:
      raise UserError(
        f'opt.name {config.opt.name!r} cannot take up the Adam moments of an '
        'RGPT file; use adamw, or start a new run from the weights alone: '
        f'launch.train --init_from={path}'
      )
    opt_state = optimizer.with_adam_state(opt_state, mu, nu, ckpt.adam_step)
  return jax.device_get(
    state.replace(step=np.asarray(ckpt.iter + 1, np.int32), opt_state=opt_state)
  )


def _abstract_state(config, cfg):
  create = lambda key: create_state(  # noqa: E731
    GPT(cfg),
    optimizer.create(config),
    key,
    ema=config.opt.ema_decay > 0,
  )
  return jax.eval_shape(create, jax.random.key(0))
