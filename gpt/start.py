"""Where a run starts: from nothing, from where it was, from other weights."""

import hashlib
import json
import logging
import pathlib
import shutil

import jax
import numpy as np

from gpt.data import prepare
from gpt.errors import UserError
from gpt.formats import randygpt
from gpt.model import GPTConfig, abstract_params
from gpt.model.config import FUNCTION, option_names
from gpt.runs import checkpoint, failures, metrics
from gpt.runs import workdir as run
from gpt.runs.load import first_readable, read_configs
from gpt.tokenizers import load_tokenizer
from gpt.training import state as train_state

logger = logging.getLogger(__name__)
# What decides what a validation loss is about, beside the text.
VALIDATION_KEYS = (
  'data.format',
  'data.val_fraction',
  'data.document_separator',
  'data.document_aware',
  'data.skip_long',
  'data.loss_on',
  'eval.windows',
  'model.block_size',
)


def prepare_data(config, workdir, init_from: str):
  """(tokenizer, corpus) of a run that starts or goes on.

  What a start that failed has left (a tokenizer of another text, say) is
  dropped: a run has begun once its config.json is written. What
  launch.prepare_data made of the same text is used.

  Args:
    init_from: workdir or RGPT file, or ''; a new run takes the tokenizer of
      the workdir, whose tokens its weights know.
  """
  if run.read_config(workdir) is not None:
    return prepare.prepare(config.data, workdir)
  if jax.process_index() == 0:
    shutil.rmtree(pathlib.Path(workdir) / 'checkpoints', ignore_errors=True)
  tokenizer = None
  if pathlib.Path(init_from or '.nothing').is_dir():
    tokenizer = load_tokenizer(init_from)
    path = config.data.tokenizer_path
    if path and load_tokenizer(path).fingerprint != tokenizer.fingerprint:
      raise UserError(
        f'data.tokenizer_path {path} is not the tokenizer of {init_from}, '
        'whose weights know no other: leave it out'
      )
  prepare.drop_leftovers(config.data, workdir, tokenizer)
  return prepare.prepare(config.data, workdir, tokenizer)


def initial_state(config, model, tx, key, checkpoints, init_from):
  """(host or device TrainState, metadata): restored, imported or fresh.

  Imported weights are kept as the first checkpoint of the run, which knows
  from then on what it began with.

  Raises:
    UserError: checkpoints that cannot be read, or that are gone; weights that
      do not fit.
  """
  ema = config.opt.ema_decay > 0
  create = jax.jit(lambda key: train_state.create(model, tx, key, ema=ema))
  restored = checkpoints.restore_latest(jax.eval_shape(create, key))
  if restored is not None:
    state, meta = restored
    logger.info(f'resuming from step {int(state.step)}')
    if init_from:
      logger.info(
        'note: --init_from only starts a run; this one has started already'
      )
    return state, meta
  workdir = checkpoints.directory.parent
  check_nothing_lost(workdir)
  if init_from:
    params = load_weights(init_from, model.cfg)
    logger.info(f'starting from the weights of {init_from}')
    state = train_state.from_params(params, tx, ema=ema)
    checkpoints.save(checkpoint.LATEST, state, {})
    if not checkpoints.wait():
      raise failures.not_saved(checkpoints.last_error, workdir)
    return state, {}
  return create(key), {}


def check_nothing_lost(workdir) -> None:
  """Refuses to begin again where a run has trained and lost its checkpoints.

  Raises:
    UserError: the run has trained, and the folder of its checkpoints, which
      is made before the first step, is gone or was emptied after its end.
  """
  if run.read_config(workdir) is None:
    return
  done = metrics.last_step(metrics.read_run(workdir))
  gone = not (workdir / 'checkpoints' / checkpoint.LATEST).is_dir()
  if done and gone or (workdir / 'checkpoint.bin').exists():
    raise UserError(
      f'{workdir} holds a run of {done} steps without its checkpoints: put '
      f'{workdir}/checkpoints back. To start afresh choose another --workdir '
      '(--init_from=FILE.bin takes over the weights of an RGPT file)'
    )
  logger.info('the run has no checkpoint yet: it begins again')


def validation_key(config, corpus) -> str:
  """Equal for runs whose validation losses (quick ones) compare."""
  flat = run.flatten(run.plain(config))
  parts = [corpus.info.text_sha256, *(flat[key] for key in VALIDATION_KEYS)]
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def load_weights(source, cfg):
  """The parameter tree of a workdir's best checkpoint or of an RGPT file."""
  source = pathlib.Path(source)
  if source.is_dir():
    check_same_network(source, cfg)
    _, params = first_readable(
      checkpoint.candidates(source), checkpoint.restore_params
    )
  else:
    if reasons := randygpt.obstacles(cfg):
      raise UserError(
        f'the weights of {source} do not fit this config: an RGPT file holds '
        f'another model: {"; ".join(reasons)}'
      )
    params, _, _ = randygpt.to_params(
      randygpt.read_rgpt(
        source,
        cfg.n_embd,
        cfg.n_layer,
        cfg.block_size,
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


def check_same_network(source, cfg: GPTConfig) -> None:
  """Raises UserError if the run's weights would mean something else in cfg."""
  _, theirs = read_configs(source, cfg.vocab_size)
  for name in option_names(FUNCTION):
    old, new = getattr(theirs, name), getattr(cfg, name)
    if old != new:
      raise UserError(
        f'the weights of {source} do not fit this config: its model.{name} is '
        f'{old!r}, here it is {new!r}'
      )
