"""Where a run starts: from nothing, from where it was, from other weights."""

import pathlib

import jax
import numpy as np

from gpt import checkpoint, data, rgpt, run, train_state
from gpt.checkpoint import BEST
from gpt.errors import UserError
from gpt.model import abstract_params
from gpt.tokenizer import load_tokenizer


def prepare_data(config, workdir, init_from: str, log):
  """(tokenizer, corpus) of a run that starts or goes on.

  What a start that failed has left (a tokenizer of another text, say) is
  dropped: a run has begun once its config.json is written. What
  launch.prepare_data made of the same text is used.

  Args:
    init_from: workdir or RGPT file, or ''; a new run takes the tokenizer of
      the workdir, whose tokens its weights know.
  """
  if run.read_config(workdir) is not None:
    return data.prepare(config.data, workdir, log=log)
  tokenizer = None
  if pathlib.Path(init_from or '.nothing').is_dir():
    tokenizer = load_tokenizer(init_from)
  data.drop_leftovers(config.data, workdir, tokenizer)
  return data.prepare(config.data, workdir, tokenizer, log=log)


def initial_state(config, model, tx, key, checkpoints, init_from, log):
  """(host or device TrainState, metadata): restored, imported or fresh.

  Raises:
    UserError: checkpoints that cannot be read; weights that do not fit.
  """
  ema = config.opt.ema_decay > 0
  create = jax.jit(lambda key: train_state.create(model, tx, key, ema=ema))
  restored = checkpoints.restore_latest(jax.eval_shape(create, key), log)
  if restored is not None:
    state, meta = restored
    log(f'resuming from step {int(state.step)}')
    if init_from:
      log('note: --init_from only starts a run; this one has started already')
    return state, meta
  if init_from:
    params = load_weights(init_from, model.cfg)
    log(f'starting from the weights of {init_from}')
    return train_state.from_params(params, tx, ema=ema), {}
  return create(key), {}


def load_weights(source, cfg):
  """The parameter tree of a workdir's best checkpoint or of an RGPT file."""
  source = pathlib.Path(source)
  if source.is_dir():
    params = checkpoint.restore_params(checkpoint.find(source, BEST))
  else:
    params, _, _ = rgpt.to_params(
      rgpt.read_rgpt(
        source, cfg.n_embd, cfg.n_layer, cfg.block_size,
        expected_vocab_size=cfg.vocab_size,
      )
    )
  given, wanted = (
    run.flatten(jax.tree.map(np.shape, tree))
    for tree in (params, abstract_params(cfg))
  )
  for name in sorted(given.keys() | wanted.keys()):
    if given.get(name) != wanted.get(name):
      raise UserError(
        f'the weights of {source} do not fit this config: {name} is '
        f'{given.get(name, "not there")}, the config has '
        f'{wanted.get(name, "no such weights")}'
      )
  return params
