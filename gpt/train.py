"""The program: train a GPT on text, from a config to files in a workdir.

Read `train_and_evaluate` from top to bottom; every noun in it has a file of
its name. A run is a pure function of its config: data order, dropout and
samples are keyed by (seed, step), so a killed run that is started again ends
with the same parameters, bit for bit, as one that was never interrupted.
"""

import contextlib
import dataclasses
import logging
import math
import pathlib

import jax
import numpy as np

from gpt import devices, files, finish, logs, start
from gpt.config_check import check_config
from gpt.data import prepare
from gpt.errors import UserError
from gpt.formats import randygpt
from gpt.model import GPT, GPTConfig, num_params
from gpt.runs import failures, metrics
from gpt.runs import workdir as run
from gpt.runs.checkpoint import BEST, LATEST
from gpt.runs.checkpoint_writer import Checkpoints
from gpt.runs.console import Console
from gpt.training import optimizer, plateau, schedules
from gpt.training import state as train_state
from gpt.training.evaluation import Evaluator
from gpt.training.plateau import Plateau
from gpt.training.profiling import Profiler
from gpt.training.step import jit_train_step

logger = logging.getLogger(__name__)

# Tokens a CPU device works on at once: activations stay in its L2 cache.
CPU_MICRO_TOKENS = 512


@dataclasses.dataclass
class Result:
  """How a run ended: 'finished', 'interrupted', 'early stop', 'nothing'."""

  outcome: str
  step: int
  best_loss: float
  final: dict
  workdir: str


def train_and_evaluate(
  config,
  workdir,
  *,
  init_from='',
  additional_steps=0,
  profile=False,
) -> Result:
  """Trains until `config.total_steps`, resuming whatever the workdir holds.

  Args:
    config: ConfigDict with the keys of configs/default.py.
    workdir: directory of the run; made if missing. Several hosts share it.
    init_from: workdir or RGPT file to take the weights (only) of a new run.
    additional_steps: train this many more steps instead of to total_steps.
    profile: write a trace of a few steps to workdir/profile.

  Raises:
    UserError: anything the user can mend, before anything is overwritten.
  """
  workdir = pathlib.Path(workdir)
  check_config(config)
  devices.setup_devices(config.parallel.num_cpu_devices)
  if config.parallel.distributed:
    devices.initialize_distributed()
  if config.model.attention == 'cudnn' and 'cuda' not in devices.backend_name():
    raise UserError(
      'model.attention cudnn needs a CUDA GPU, here is '
      f'{devices.backend_name()}: set --config.model.attention=auto'
    )
  leader = jax.process_index() == 0  # The process that writes files.
  changed = run.check_resumable(workdir, config)
  run.make(workdir)
  with contextlib.ExitStack() as stack:
    stack.enter_context(logs.shown_by_default())
    if not leader:
      logs.silence()
    stack.enter_context(failures.explained(config, workdir))
    if leader:
      stack.enter_context(run.lock(workdir))
      files.remove_leftovers(workdir)
    interrupt = stack.enter_context(run.Interrupt())

    # Text -> tokens.
    with devices.process_zero_first():
      tokenizer, corpus = start.prepare_data(config, workdir, init_from)
    dataset = prepare.create_dataset(config, corpus, tokenizer)

    # Devices, model, optimizer.
    mesh = devices.create_mesh(config.batch_size)
    micro = micro_batch_size(config, mesh)
    rows = devices.padded_batch_size(config.batch_size, mesh, micro)
    cfg = GPTConfig.from_config(config.model, tokenizer.vocab_size)
    model = GPT(cfg)
    tx = optimizer.create(config, mesh, mixed=cfg.dtype == 'mixed')

    # Start or resume.
    checkpoints = Checkpoints(workdir, config.checkpoint.keep)
    stack.callback(checkpoints.close)
    init_key, dropout_key = jax.random.split(jax.random.key(config.seed))
    state, meta = start.initial_state(
      config, model, tx, init_key, checkpoints, init_from
    )
    first = int(state.step)
    track = Plateau(**meta.get('plateau', {}))
    if additional_steps:
      config = config.copy_and_resolve_references()  # The caller has his.
      config.total_steps = first + additional_steps
      changed.pop('total_steps', None)
      track = dataclasses.replace(track, stopped=False, evals_since_best=0)
    if first >= config.total_steps or track.stopped:
      logger.info(
        f'Already at step {first} (target {config.total_steps}). '
        'Nothing to train.'
      )
      if track.stopped:
        logger.info('The run stopped early; --additional_steps=N goes on.')
      lowered = first > config.total_steps and not track.stopped
      if lowered or not metrics.lacks_end(workdir, first):
        return Result('nothing', first, track.best_loss, {}, str(workdir))
      logger.info(
        'It was cut short while it wrote its last files: doing that now.'
      )
    last = first if track.stopped else max(first, config.total_steps)
    if leader:
      run.save_config(workdir, config)
      prepare.keep_record(workdir, corpus)
    state = devices.put_replicated(state, mesh)
    schedule = schedules.from_config(config)
    train_step = jit_train_step(
      model,
      tx,
      schedule,
      mesh,
      micro_batch_size=micro,
      ema_decay=config.opt.ema_decay,
      min_lr=config.min_lr,
    )
    evaluate = Evaluator(model, mesh, dataset)
    announce(config, cfg, tokenizer, mesh, micro, first, changed)

    # The loop.
    clock = metrics.Clock(meta.get('elapsed_s', 0.0))
    metrics_log = metrics.MetricsLog(
      workdir, first, config.tensorboard, active=leader
    )
    stack.callback(metrics_log.close)
    console = Console(config, clock, first, metrics_log.recent_losses)
    profiler = Profiler(workdir / 'profile', first) if profile else None
    if leader:
      finish.keep_samples(workdir, first)

    validation = start.validation_key(config, corpus)

    def describe():
      """What a checkpoint says of the run beside its arrays."""
      return {
        'plateau': dataclasses.asdict(track),
        'best_loss': track.best_loss,
        'validation': validation,
        'elapsed_s': clock.elapsed(),
      }

    def save(which, state):
      step, meta = int(state.step), describe()
      if not checkpoints.save(which, state, meta):
        logger.warning(
          f'a checkpoint could not be written by step {step} '
          f'({checkpoints.last_error}); earlier ones are untouched. Is the '
          'disk full?'
        )

    def read(step, values):
      """Blocks until a step has finished; writes its numbers down."""
      values = {name: float(value) for name, value in values.items()}
      if not math.isfinite(values['loss'] + values['grad_norm']):
        # Of the parameters that gave this loss.
        checkpoints.set_aside(LATEST, step - 1)
        raise failures.not_finite(step, 'loss', values['lr'], workdir)
      loss = values['loss'] if values['tokens'] else math.nan
      metrics_log.write(
        step,
        loss=loss,
        lr=values['lr'],
        grad_norm=values['grad_norm'],
        tokens=values['tokens'],
      )
      console.add(values, timed=step > first + 1)

    try:
      checkpoints.tidy()
      if (
        math.isfinite(track.best_loss)
        and meta.get('validation', validation) != validation
      ):
        quick = evaluate(
          train_state.eval_params(state), 'val', config.eval.windows
        )
        logger.info(
          f'other data validates from now on: step {first} has a loss of '
          f'{quick["nats_per_token"]:.4f} on it (the best so far, '
          f'{track.best_loss:.4f}, is kept in checkpoints/replaced)'
        )
        if not checkpoints.replace_best(state, meta, validation):
          raise failures.not_saved(checkpoints.last_error, workdir)
        track = plateau.judge_again(track, quick['nats_per_token'], first)
        save(BEST, state)
      if first == last and not checkpoints.has(LATEST, last):
        save(LATEST, state)  # Killed after the best, before the latest.
      if first == 0:
        quick = evaluate(
          train_state.eval_params(state), 'val', config.eval.windows
        )
        logger.info(
          f'step 0 | val {quick["nats_per_token"]:.4f} before training'
        )
        metrics_log.write(
          0,
          val_loss=quick['nats_per_token'],
          val_ppl=quick['ppl'],
          val_bits_per_byte=quick['bits_per_byte'],
        )
      previous = None
      for step in range(first + 1, last + 1):
        batch = local_rows(dataset, step - 1, config.batch_size, rows)
        batch = devices.put_batch(batch, mesh)
        if profiler:
          profiler.before(step)
        state, values = train_step(state, batch, dropout_key)
        if profiler:
          profiler.after(step, state)
        if previous is not None:
          read(*previous)
        previous = step, values
        console.tick()
        eval_due = step % config.eval.every == 0 or step == last
        save_due = step == last or (
          config.checkpoint.every and step % config.checkpoint.every == 0
        )
        stop = interrupt.requested
        if jax.process_count() > 1:
          stop = devices.any_process(stop, step, eval_due or save_due)
        if not (eval_due or save_due or stop or step == first + 1):
          continue

        # The device is idle from here on: the clock stands still.
        read(*previous)
        previous = None
        clock.pause()
        if eval_due:
          params = train_state.eval_params(state)
          quick = evaluate(params, 'val', config.eval.windows)
          if quick['tokens'] and not math.isfinite(quick['nats_per_token']):
            raise failures.not_finite(
              step, 'validation loss', values['lr'], workdir
            )
          track, message = plateau.update(
            track, config.opt, quick['nats_per_token'], step
          )
          metrics_log.write(step, **console.report(step, quick, track))
          scale = np.float32(plateau.lr_scale(track, config.opt))
          state = state.replace(lr_scale=devices.put_replicated(scale, mesh))
          if message:
            logger.info(message)
          # Before the checkpoint from which another process may go on.
          if config.eval.sample and leader:
            finish.write_sample(config, model, params, tokenizer, workdir, step)
          if track.best_step == step:
            save(BEST, state)
        if save_due or stop or track.stopped:
          save(LATEST, state)
        if stop or track.stopped:
          break
        clock.resume()
    finally:
      if profiler:
        profiler.close()
      console.close()
      saved = checkpoints.wait()

    # What the run leaves behind.
    step = int(state.step)
    outcome = 'early stop' if track.stopped else 'finished'
    if step < config.total_steps and not track.stopped:
      outcome = 'interrupted'
      logger.info(
        f'Interrupted at step {step}. Saved in {workdir}/checkpoints.'
      )
    if not saved:
      raise failures.not_saved(checkpoints.last_error, workdir)
    if leader:
      finish.write_rgpt_files(cfg, state, track.best_loss, workdir)
    final = {}
    if outcome != 'interrupted':
      params = train_state.eval_params(state)
      if config.eval.full_at_end:
        final = finish.full_evaluation(evaluate, params, mesh, workdir, step)
      if leader:
        prompt = config.sample.prompt
        text = finish.write_sample(
          config, model, params, tokenizer, workdir, step
        )
        logger.info(f'sample after {prompt!r}:\n{prompt}{text}')
      metrics_log.write_end(step, outcome, final, clock.elapsed())
    best = ''
    if track.best_step >= 0:
      best = f'; best val {track.best_loss:.4f} at step {track.best_step}'
    duration = metrics.duration(clock.elapsed())
    logger.info(f'{outcome} at step {step} after {duration}{best}')
    if outcome == 'interrupted':
      logger.info(
        f'Go on with: python -m launch.train --workdir={workdir}'
        if additional_steps
        else 'Run the same command again to go on.'
      )
    return Result(outcome, step, track.best_loss, final, str(workdir))


def micro_batch_size(config, mesh) -> int:
  """Rows a device works on at once (`parallel.micro_batch_size`)."""
  rows = -(-config.batch_size // mesh.size)
  wanted = config.parallel.micro_batch_size
  if not wanted:
    if jax.default_backend() != 'cpu':
      return rows
    wanted = max(1, CPU_MICRO_TOKENS // config.model.block_size)
  wanted = min(wanted, rows)
  divisor = max(m for m in range(1, wanted + 1) if rows % m == 0)
  return divisor if 2 * divisor > wanted else wanted


def local_rows(dataset, step: int, batch_size: int, padded: int) -> dict:
  """This host's share of the global batch of `padded` rows."""
  own = devices.process_rows(padded)
  rows = slice(min(own.start, batch_size), min(own.stop, batch_size))
  return devices.pad_rows(dataset.batch_at(step, rows), own.stop - own.start)


def announce(config, cfg, tokenizer, mesh, micro, first, changed) -> None:
  """What is about to be trained, on what."""
  device = mesh.devices.flat[0]
  logger.info(
    f'model: {cfg.arch}, {cfg.n_layer} layers x {cfg.n_embd}, {cfg.n_head} '
    f'heads, context {cfg.block_size}, vocabulary {cfg.vocab_size} '
    f'({tokenizer.kind}): {num_params(cfg):,} parameters'
  )
  logger.info(
    f'steps {first} -> {config.total_steps} of {config.batch_size} x '
    f'{cfg.block_size} tokens on {mesh.size} x {device.platform} '
    f'({device.device_kind}), {cfg.dtype}, attention {cfg.attention}, '
    f'{micro} sequences at once'
  )
  for reason in randygpt.obstacles(cfg):
    logger.info(
      f'note: no RGPT files (checkpoint.bin) will be written: {reason}'
    )
  if first:
    for key, (old, new) in changed.items():
      logger.info(f'note: {key} changed: {old!r} -> {new!r}')
