"""The data and the initial state of a run: fresh, resumed or imported."""

import dataclasses
import functools
import hashlib
import json
import logging
import pathlib
import shutil
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from gpt import devices, processor, sharding
from gpt.data import prepare
from gpt.errors import UserError
from gpt.formats import randygpt
from gpt.model import GPT, GPTConfig, num_params
from gpt.model.params import Params
from gpt.runs import base, checkpoint, failures, metrics
from gpt.runs.checkpoint_meta import check_model
from gpt.runs.checkpoint_writer import Checkpoints
from gpt.runs.config_file import flatten, plain
from gpt.runs.load import load_model
from gpt.runs.weights import check_same_network, check_source, load_weights
from gpt.runs.workdir import Run
from gpt.tokenizers import Tokenizer, load_tokenizer
from gpt.training import lora
from gpt.training.state import (
  TrainState,
  abstract_state,
  create_state,
  state_from_params,
)
from gpt.training.step import Frozen

logger = logging.getLogger(__name__)
# Keys that define the validation set, besides the text.
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


def load_data(
  run: Run, config: Any, init_from: str
) -> tuple[Tokenizer, prepare.Dataset]:
  """(tokenizer, dataset) of a run that starts or resumes.

  What a failed start left behind (a tokenizer of another text, say) is
  removed; what launch.prepare_data made of the same text is used.

  Args:
    init_from: workdir or RGPT file, or ''; a new run takes the tokenizer of
      that workdir, since the weights know its tokens.

  Raises:
    UserError: no such source of weights or text, or they do not fit together;
      a mesh that does not fit the devices or the model.
  """
  # Before one process writes what another that fails removes. Any vocabulary
  # will do: none is refused.
  sharding.mesh_for(config, GPTConfig.from_config(config.model, 1))
  with devices.process_zero_first():
    tokenizer = None
    if not run.begun:  # Checked before anything is written.
      check_base(config, init_from)
      if init_from:
        check_source(init_from)
      if run.leader:
        shutil.rmtree(run.workdir / 'checkpoints', ignore_errors=True)
      tokenizer = tokenizer_of(init_from, config.data.tokenizer_path)
  if jax.process_count() > 1:
    prepare.encode_share(
      config.data,
      run.workdir,
      run.begun,
      tokenizer,
      jax.process_index(),
      jax.process_count(),
      devices.process_zero_first(),
    )
  with devices.process_zero_first():
    tokenizer, corpus = prepare.prepare(
      config.data, run.workdir, run.begun, tokenizer
    )
  return tokenizer, prepare.create_dataset(config, corpus, tokenizer)


def with_dtype(run: Run, config: Any) -> Any:
  """The config with the dtype that 'auto' means for this run, to be recorded.

  A run keeps the dtype it began with, on any machine. A new one on a CPU gets
  'mixed' if the processors of all processes multiply bfloat16, else 'float32'.
  Two are 'float32' everywhere: adapters, which would need a merged copy of
  their base, and runs on jax 0.5, kept for jax-metal, whose bfloat16 has not
  been measured on a Mac. Accelerators keep 'auto', which means the same on all
  of a kind.
  """
  if config.model.dtype != 'auto':
    return config
  if run.saved:
    dtype = run.saved['model'].get('dtype', 'auto')
  elif devices.backend_name() == 'cpu':
    plain_products = lora.rank(config) > 0 or not hasattr(jax, 'shard_map')
    able = processor.multiplies_bfloat16()
    if jax.process_count() > 1:
      able = not devices.any_process(not able)
    dtype = 'mixed' if able and not plain_products else 'float32'
  else:
    return config
  config = config.copy_and_resolve_references()
  config.model.dtype = dtype
  return config


def check_base(config: Any, init_from: str) -> None:
  """Raises UserError if a new run's adapters have no base to stand beside."""
  rank = lora.rank(config)
  if rank and not init_from:
    raise UserError(
      f'opt.lora_rank={rank} trains adapters of a model: name it with '
      '--init_from=WORKDIR, or set --config.opt.lora_rank=0 to train all '
      'weights'
    )
  if rank and base.has_record(init_from):
    raise UserError(
      f'{init_from} holds adapters, and adapters of adapters cannot be '
      f'trained: start from its base, {base.read_record(init_from).source}, '
      'or train all weights (--config.opt.lora_rank=0)'
    )


def tokenizer_of(init_from: str, tokenizer_path: str) -> Tokenizer | None:
  """The tokenizer of the workdir `init_from`; None for a file or ''.

  Raises:
    UserError: data.tokenizer_path names a different one.
  """
  if not init_from or not pathlib.Path(init_from).is_dir():
    return None
  tokenizer = load_tokenizer(init_from)
  if (
    tokenizer_path
    and load_tokenizer(tokenizer_path).fingerprint != tokenizer.fingerprint
  ):
    raise UserError(
      f'data.tokenizer_path {tokenizer_path} is not the tokenizer of '
      f'{init_from}, whose weights know no other: leave it out'
    )
  return tokenizer


def initial_state(
  run: Run,
  config: Any,
  model: GPT | lora.Adapted,
  tx: optax.GradientTransformation,
  key: jax.Array,
  checkpoints: Checkpoints,
  init_from: str,
  mesh: Mesh,
) -> tuple[TrainState, dict]:
  """(TrainState on host or device, metadata): restored, imported or fresh.

  A fresh state whose params are sharded is made where it belongs.

  Imported weights are saved as the first checkpoint, so that a restart does
  not depend on `init_from`.

  Raises:
    UserError: checkpoints that cannot be read, or that are gone; weights that
      do not fit.
  """
  check_model(run.workdir, model.cfg, config.opt)
  ema = config.opt.ema_decay > 0
  abstract = abstract_state(model, tx, ema=ema)
  target = abstract
  if jax.process_count() > 1:  # Each process reads what its devices hold.
    target = sharding.with_places(mesh, abstract)
  restored = checkpoints.restore_latest(target)
  if restored is not None:
    state, meta = restored
    logger.info(f'resuming from step {int(state.step)}')
    if init_from:
      logger.info(
        f'note: --init_from={init_from} is not used: it only starts a run, and '
        f'{run.workdir} holds one that has started'
      )
    if state.opt_state is None:  # An import that has not been trained.
      state = dataclasses.replace(state, opt_state=tx.init(state.params))
    return state, meta
  check_nothing_lost(run)
  if init_from and isinstance(model, GPT):
    params = load_params(init_from, model.cfg)
    logger.info(f'starting from the weights of {init_from}')
    state = state_from_params(params, tx, ema=ema)
    if jax.process_count() > 1:
      state = sharding.place(state, mesh)
    checkpoints.save(checkpoint.LATEST, state, {})
    if not checkpoints.wait():
      raise failures.not_saved(checkpoints.last_error, run.workdir)
    return state, {}
  create = functools.partial(create_state, model, tx, ema=ema)
  if not sharding.is_sharded(mesh):
    return jax.jit(create)(key), {}
  places = sharding.shardings(mesh, abstract)
  return jax.jit(create, out_shardings=places)(key), {}


def load_params(source: str, cfg: GPTConfig) -> Params:
  """The weights that a new run starts from; adapters merged into their base.

  Raises:
    UserError: there are none, or they do not fit the config.
  """
  if base.has_record(source):
    check_same_network(source, cfg)
    return load_model(source).params
  return load_weights(source, cfg)


def frozen_variables(
  run: Run, config: Any, model: GPT | lora.Adapted, init_from: str, base_at: str
) -> Frozen:
  """The model's variables besides its params: with LoRA the base, as numpy.

  A new run records its base (base.json); one that resumes reads it again.

  Args:
    base_at: where the base is now, if it has moved.

  Raises:
    UserError: no base was given, it is missing, or it has changed.
  """
  if isinstance(model, GPT):
    if base_at:
      raise UserError('--base is for runs with adapters (opt.lora_rank)')
    if run.leader and not run.begun:  # A failed start may have left one.
      (run.workdir / base.FILE).unlink(missing_ok=True)
    return {}
  cfg = model.cfg
  if not run.begun:
    params = load_weights(init_from, cfg)
    if run.leader:
      base.record(run.workdir, init_from, base.fingerprint(cfg, params))
    logger.info(f'adapting the weights of {init_from}')
    return {'base': base.stored_as(cfg, params)}
  params = base.load_base(run.workdir, cfg, base_at)
  if base_at and run.leader:  # From now on it is found there.
    recorded = base.read_record(run.workdir)
    base.record(run.workdir, base_at, recorded.fingerprint)
  return {'base': params}


def check_nothing_lost(run: Run) -> None:
  """Refuses to start over in a workdir whose checkpoints were lost.

  Raises:
    UserError: steps were trained, but the folder of checkpoints (made before
      the first step) is gone, or was emptied after the end.
  """
  if not run.begun:
    return
  workdir = run.workdir
  done = metrics.last_step(metrics.read_lines(workdir, warn=False))
  gone = not (workdir / 'checkpoints' / checkpoint.LATEST).is_dir()
  if done and gone or (workdir / 'checkpoint.bin').exists():
    raise UserError(
      f'{workdir} holds a run of {done} steps without its checkpoints: put '
      f'{workdir}/checkpoints back. To start afresh choose another --workdir '
      '(--init_from=FILE.bin takes over the weights of an RGPT file)'
    )
  logger.info('the run has no checkpoint yet: starting from the beginning')


def announce(
  run: Run,
  config: Any,
  model: GPT | lora.Adapted,
  state: TrainState,
  tokenizer: Tokenizer,
  mesh: Mesh,
  micro_batch: int,
) -> None:
  """Logs what is about to be trained, and on which devices.

  Args:
    micro_batch: rows that a device processes at once.
  """
  cfg, device, first = model.cfg, mesh.devices.flat[0], int(state.step)
  logger.info(
    f'model: {cfg.arch}, {cfg.n_layer} layers x {cfg.n_embd}, {cfg.n_head} '
    f'heads, context {cfg.block_size}, vocabulary {cfg.vocab_size} '
    f'({tokenizer.kind}): {num_params(cfg):,} parameters'
  )
  if isinstance(model, lora.Adapted):
    logger.info(lora.describe(config.opt, state.params))
  logger.info(
    f'steps {first} -> {config.total_steps} of {config.batch_size} x '
    f'{cfg.block_size} tokens on {sharding.described(mesh)} {device.platform} '
    f'({device.device_kind}), {cfg.dtype}, attention {cfg.attention}, '
    f'{micro_batch} sequences at once'
  )
  if reasons := rgpt_obstacles(model):
    logger.info(
      'note: no RGPT files (checkpoint.bin) will be written: '
      + '; '.join(reasons)
    )
  if first:
    for key, (old, new) in run.changed.items():
      logger.info(f'note: {key} changed: {old!r} -> {new!r}')


def rgpt_obstacles(model: GPT | lora.Adapted) -> list[str]:
  """Reasons why a run leaves no RGPT files; [] if it does."""
  if isinstance(model, lora.Adapted):
    return ['only adapters are trained; launch.export merges them']
  return randygpt.obstacles(model.cfg)


def validation_key(
  config: Any, corpus: prepare.Corpus | prepare.Documents
) -> str:
  """Equal for runs whose validation losses (quick ones) compare."""
  flat = flatten(plain(config))
  parts = [corpus.info.text_sha256, *(flat[key] for key in VALIDATION_KEYS)]
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
