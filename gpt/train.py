"""The program: train a GPT on text, from a config to files in a workdir.

Read `train_and_evaluate` from top to bottom; every noun in it has a file of
its name. A run is a pure function of its config: data order, dropout and
samples are keyed by (seed, step), so a killed run that is started again ends
with the same parameters, bit for bit, as one that was never interrupted.
"""

import dataclasses
import math
import pathlib
import sys

import jax
import numpy as np
from tqdm import tqdm

from gpt import (
  checkpoint,
  data,
  decode,
  optimizer,
  plateau,
  rgpt,
  run,
  sampling,
  schedules,
  sharding,
  train_state,
)
from gpt import metrics as metrics_lib
from gpt.checkpoint import BEST, LATEST, Checkpoints
from gpt.config_check import check_config
from gpt.errors import UserError
from gpt.evaluation import Evaluator
from gpt.metrics import Clock, MetricsLog
from gpt.model import GPT, GPTConfig, num_params
from gpt.plateau import Plateau
from gpt.tokenizer import load_tokenizer
from gpt.train_step import jit_train_step

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
  config, workdir, *, init_from='', additional_steps=0, log=None
) -> Result:
  """Trains until `config.total_steps`, resuming whatever the workdir holds.

  Args:
    config: ConfigDict with the keys of configs/default.py.
    workdir: directory of the run; made if missing.
    init_from: workdir or RGPT file to take the weights (only) of a new run.
    additional_steps: train this many more steps instead of to total_steps.
    log: prints a line; default: stdout, above the progress bar.

  Raises:
    UserError: anything the user can mend, before anything is overwritten.
  """
  log = log or _log_line
  workdir = pathlib.Path(workdir)
  check_config(config)
  sharding.setup_devices(config.parallel.num_cpu_devices)
  changed = run.check_resumable(workdir, config)
  workdir.mkdir(parents=True, exist_ok=True)
  with run.lock(workdir), run.Interrupt(log) as interrupt:
    # Text -> tokens.
    if init_from and run.read_config(workdir) is None:
      adopt_tokenizer(init_from, workdir)
    tokenizer, corpus = data.prepare(config.data, workdir, log=log)
    dataset = data.TextDataset(
      corpus, config.model.block_size, config.batch_size, config.seed,
      tokenizer, config.data.document_aware,
    )

    # Model, optimizer, devices.
    cfg = GPTConfig.from_config(config.model, tokenizer.vocab_size)
    model, tx = GPT(cfg), optimizer.create(config)
    mesh = sharding.create_mesh(config.batch_size)
    micro = micro_batch_size(config, mesh)
    rows = sharding.padded_batch_size(config.batch_size, mesh, micro)

    # Start or resume.
    checkpoints = Checkpoints(workdir, config.checkpoint.keep)
    init_key, dropout_key = jax.random.split(jax.random.key(config.seed))
    state, meta = initial_state(
      config, model, tx, init_key, checkpoints, init_from, log
    )
    first = int(state.step)
    track = Plateau(**meta.get('plateau', {}))
    if additional_steps:
      config.total_steps = first + additional_steps
      track = dataclasses.replace(track, stopped=False)
    if first >= config.total_steps or track.stopped:
      log(
        f'Already at step {first} (target {config.total_steps}). '
        'Nothing to train.'
      )
      if track.stopped:
        log('The run stopped early; --additional_steps=N goes on.')
      return Result('nothing', first, track.best_loss, {}, str(workdir))
    run.save_config(workdir, config)
    state = sharding.put_replicated(state, mesh)
    schedule = schedules.from_config(config)
    train_step = jit_train_step(
      model, tx, schedule, mesh,
      micro_batch_size=micro, ema_decay=config.opt.ema_decay,
    )
    evaluate = Evaluator(model, mesh, dataset)
    announce(config, cfg, tokenizer, corpus, mesh, micro, first, changed, log)

    # The loop.
    clock = Clock(meta.get('elapsed_s', 0.0))
    metrics_log = MetricsLog(workdir, first, config.tensorboard)
    console = Console(config, log, clock)

    def save(which, state):
      step = int(state.step)
      if not all(np.isfinite(x).all() for x in jax.tree.leaves(state.params)):
        raise not_finite(step, 'parameters', schedule(step), workdir)
      meta = {
        'plateau': dataclasses.asdict(track),
        'best_loss': track.best_loss,
        'elapsed_s': clock.elapsed(),
      }
      if not checkpoints.save(which, state, meta):
        log(
          f'warning: no checkpoint of step {step} ({checkpoints.last_error}); '
          'earlier ones are untouched. Is the disk full?'
        )

    def read(step, metrics):
      """Blocks until a step has finished; writes its numbers down."""
      metrics = {k: float(v) for k, v in metrics.items()}
      if not math.isfinite(metrics['loss'] + metrics['grad_norm']):
        raise not_finite(step, 'loss', metrics['lr'], workdir)
      metrics_log.write(
        step, loss=metrics['loss'], lr=metrics['lr'],
        grad_norm=metrics['grad_norm'],
      )
      console.add(metrics)

    try:
      if first == 0:
        quick = evaluate(state.params, 'val', config.eval.windows)
        log(f'step 0 | val {quick["nats_per_token"]:.4f} before training')
        metrics_log.write(0, **console.eval_values(quick, track))
      previous = None
      clock.resume()
      for step in range(first + 1, config.total_steps + 1):
        batch = local_rows(dataset, step - 1, config.batch_size, rows)
        batch = sharding.put_batch(batch, mesh)
        state, metrics = train_step(state, batch, dropout_key)
        if previous is not None:
          read(*previous)
        previous = step, metrics
        console.tick(step)
        last = step == config.total_steps
        eval_due = step % config.eval.every == 0 or last
        save_due = step % config.checkpoint.every == 0 or last
        if not (eval_due or save_due or interrupt.requested):
          continue

        read(*previous)
        previous = None
        clock.pause()
        if eval_due:
          params = train_state.eval_params(state)
          quick = evaluate(params, 'val', config.eval.windows)
          track, message = plateau.update(
            track, config.opt, quick['nats_per_token'], step
          )
          console.line(step, quick, track)
          metrics_log.write(step, **console.eval_values(quick, track))
          scale = np.float32(plateau.lr_scale(track, config.opt))
          state = state.replace(lr_scale=sharding.put_replicated(scale, mesh))
          if message:
            log(message)
          if track.best_step == step:
            save(BEST, state)
          if config.eval.sample:
            write_sample(config, model, params, tokenizer, workdir, step)
        if save_due or interrupt.requested or track.stopped:
          save(LATEST, state)
        if interrupt.requested or track.stopped:
          break
        clock.resume()
    except jax.errors.JaxRuntimeError as e:
      checkpoints.wait()
      raise out_of_memory(e, config) from e
    finally:
      console.close()
      saved = checkpoints.wait()

    # What the run leaves behind.
    step = int(state.step)
    outcome = 'finished' if step >= config.total_steps else 'early stop'
    if interrupt.requested and step < config.total_steps:
      outcome = 'interrupted'
      log(f'Interrupted at step {step}. Saved {workdir}/checkpoints/{LATEST}.')
    write_rgpt_files(config, cfg, checkpoints, state, track, workdir, log)
    final = {}
    if outcome != 'interrupted':
      final = finish(
        config, model, tokenizer, evaluate, checkpoints, state, workdir, log
      )
      metrics_log.write(step, **{
        f'full_{which}_{k}': v
        for which, values in final.items()
        for k, v in values.items()
      }, elapsed_s=clock.elapsed())
    metrics_log.close()
    checkpoints.close()
    log(
      f'{outcome} at step {step} after {metrics_lib.duration(clock.elapsed())};'
      f' best val {track.best_loss:.4f} at step {track.best_step}'
    )
    if outcome == 'interrupted':
      log('Run the same command again to go on.')
    if not saved:
      raise UserError(
        f'the last checkpoint could not be written ({checkpoints.last_error});'
        ' earlier ones are whole. Free some space and run the same command'
      )
    return Result(outcome, step, track.best_loss, final, str(workdir))


def initial_state(config, model, tx, key, checkpoints, init_from, log):
  """(host or device TrainState, metadata): restored, imported or fresh."""
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
  wanted = jax.eval_shape(
    GPT(cfg).init, jax.random.key(0), np.zeros((1, 1), np.int32)
  )['params']
  shapes = jax.tree.map(np.shape, params), jax.tree.map(np.shape, wanted)
  if shapes[0] != shapes[1]:
    raise UserError(
      f'the weights of {source} do not fit this config: '
      f'{_first_difference(*map(run.flatten, shapes))}'
    )
  return params


def _first_difference(given: dict, wanted: dict) -> str:
  for name in sorted(given.keys() | wanted.keys()):
    if given.get(name) != wanted.get(name):
      return f'{name} is {given.get(name)}, the config has {wanted.get(name)}'
  return ''


def adopt_tokenizer(source, workdir) -> None:
  """A run that starts from another run's weights speaks its tokens."""
  source = pathlib.Path(source)
  if source.is_dir() and not (workdir / 'tokenizer').exists():
    load_tokenizer(source).save(workdir / 'tokenizer')


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
  share = padded // jax.process_count()
  first = share * jax.process_index()
  rows = slice(min(first, batch_size), min(first + share, batch_size))
  return sharding.pad_rows(dataset.batch_at(step, rows), share)


class Console:
  """A line an eval; in a terminal a progress bar besides."""

  def __init__(self, config, log, clock):
    self._config, self._log, self._clock = config, log, clock
    self._bar = None
    if sys.stderr.isatty() and jax.process_index() == 0:
      self._bar = tqdm(
        total=config.total_steps, unit='step', leave=False, dynamic_ncols=True
      )
    self._losses, self._tokens, self._lr = [], 0.0, 0.0
    self._steps_per_s = 0.0

  def tick(self, step: int) -> None:
    if self._bar is not None:
      self._bar.update(step - self._bar.n)

  def add(self, metrics: dict) -> None:
    self._losses.append(metrics['loss'])
    self._tokens += metrics['tokens']
    self._lr = metrics['lr']

  def eval_values(self, quick: dict, track: Plateau) -> dict:
    """What metrics.jsonl gets at an eval; starts a new interval."""
    values = {
      'val_loss': quick['nats_per_token'],
      'val_ppl': quick['ppl'],
      'val_bits_per_byte': quick['bits_per_byte'],
      'best_val_loss': track.best_loss,
      'patience': track.evals_since_best,
      'elapsed_s': self._clock.elapsed(),
    }
    if self._losses:
      seconds = self._clock.lap()
      values |= {
        'train_loss': float(np.mean(self._losses)),
        'ms_per_step': 1e3 * seconds / len(self._losses),
        'tokens_per_s': self._tokens / seconds,
      }
    self._losses, self._tokens = [], 0.0
    return values

  def line(self, step: int, quick: dict, track: Plateau) -> None:
    n, total = max(len(self._losses), 1), self._config.total_steps
    seconds = self._clock._lap_seconds
    left = (total - step) * seconds / n
    patience = self._config.opt.plateau_patience
    self._log(
      f'step {step}/{total} | loss {np.mean(self._losses or [math.nan]):.4f}'
      f' | val {quick["nats_per_token"]:.4f} ppl {quick["ppl"]:.2f}'
      f' | lr {self._lr:.2e}'
      f' | best {track.best_loss:.4f} @{track.best_step}'
      f' | {1e3 * seconds / n:.0f} ms/step'
      f' {metrics_lib.count(self._tokens / max(seconds, 1e-9))} tok/s'
      f' | {metrics_lib.duration(self._clock.elapsed())} elapsed,'
      f' {metrics_lib.duration(left)} left'
      + (f' | patience {track.evals_since_best}/{patience}' if patience else '')
    )

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()


def _log_line(text: str, flush: bool = False) -> None:
  if jax.process_index() == 0:
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def announce(
  config, cfg, tokenizer, corpus, mesh, micro, first, changed, log
) -> None:
  """What is about to be trained, on what."""
  device = mesh.devices.flat[0]
  log(
    f'model: {cfg.arch}, {cfg.n_layer} layers x {cfg.n_embd}, {cfg.n_head} '
    f'heads, context {cfg.block_size}, vocabulary {cfg.vocab_size} '
    f'({tokenizer.kind}): {metrics_lib.count(num_params(cfg))} parameters'
  )
  log(
    f'steps {first} -> {config.total_steps} of {config.batch_size} x '
    f'{cfg.block_size} tokens on {mesh.size} x {device.platform} '
    f'({device.device_kind}), {cfg.dtype}, attention {cfg.attention}, '
    f'{micro} sequences at once'
  )
  for reason in rgpt.obstacles(cfg):
    log(f'note: no RGPT files (checkpoint.bin) will be written: {reason}')
  if first:
    for key, (old, new) in changed.items():
      log(f'note: {key} changed: {old!r} -> {new!r}')


def finish(config, model, tokenizer, evaluate, checkpoints, state, workdir, log):
  """Full validation pass and a sample, for the final and the best weights."""
  params = train_state.eval_params(state)
  final = {}
  if config.eval.full_at_end:
    final['final'] = evaluate(params, 'val', None)
    best = checkpoint.find(workdir, BEST)
    if checkpoint.read_meta(best)['step'] != int(state.step):
      best_params = sharding.put_replicated(
        checkpoint.restore_params(best), state.step.sharding.mesh
      )
      final['best'] = evaluate(best_params, 'val', None)
    for which, values in final.items():
      log(
        f'full validation pass, {which} weights: '
        f'{values["nats_per_token"]:.4f} nats/token, ppl {values["ppl"]:.2f}, '
        f'{values["bits_per_byte"]:.4f} bits/byte over {values["tokens"]} tokens'
      )
  text = write_sample(
    config, model, params, tokenizer, workdir, int(state.step)
  )
  log(f'sample after {config.sample.prompt!r}:\n{config.sample.prompt}{text}')
  return final


def write_sample(config, model, params, tokenizer, workdir, step) -> str:
  """Appends a sample of the current weights to samples.txt; returns it."""
  text = ''.join(
    decode.complete(
      model, jax.device_get(params), tokenizer, config.sample.prompt,
      sampling.params(
        1, seed=config.seed, temperature=config.sample.temperature,
        top_p=config.sample.top_p, top_k=config.sample.top_k,
      ),
      config.sample.max_tokens,
    )
  )
  with open(pathlib.Path(workdir) / 'samples.txt', 'a', encoding='utf-8') as f:
    f.write(f'--- step {step}\n{config.sample.prompt}{text}\n')
  return text


def write_rgpt_files(config, cfg, checkpoints, state, track, workdir, log):
  """checkpoint.bin and checkpoint_best.bin, where RGPT can express the model."""
  if rgpt.obstacles(cfg) or jax.process_index():
    return
  export_rgpt(jax.device_get(state), track.best_loss, workdir / 'checkpoint.bin')
  names = ['checkpoint.bin']
  if track.best_step >= 0:
    best, meta = checkpoint.restore_state(
      checkpoint.find(workdir, BEST), jax.device_get(state)
    )
    export_rgpt(best, meta['best_loss'], workdir / 'checkpoint_best.bin')
    names.append('checkpoint_best.bin')
  log(f'wrote {" and ".join(names)} in {workdir}')


def export_rgpt(state, best_loss, path) -> None:
  """An RGPT0003 file with the state's weights, moments and counters."""
  adam = optimizer.adam_state(state.opt_state)
  rgpt.write_rgpt(
    path,
    rgpt.from_params(
      state.params, adam.mu, adam.nu, iter=max(int(state.step) - 1, 0),
      adam_step=int(adam.count), best_loss=best_loss,
    ),
  )


def not_finite(step, what, lr, workdir) -> UserError:
  return UserError(
    f'{what} is not a finite number at step {step} (lr {float(lr):.3g}). The '
    f'last good checkpoint is in {workdir}/checkpoints. Try a lower '
    '--config.lr, a warmup (--config.opt.warmup_steps), or '
    '--config.opt.clip=global_norm, in a new workdir or from that checkpoint'
  )


def out_of_memory(error, config) -> Exception:
  """A message with what to lower, if that is what the error is."""
  if 'RESOURCE_EXHAUSTED' not in str(error) and 'memory' not in str(error):
    return error
  return UserError(
    'out of memory. Lower --config.batch_size (now '
    f'{config.batch_size}), --config.parallel.micro_batch_size (sequences at '
    'once; the result does not change), --config.model.block_size (now '
    f'{config.model.block_size}), or set --config.model.remat'
  )
