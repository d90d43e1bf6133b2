"""The state of a run while it trains, and what happens between steps.

The steps themselves are pure functions (training/step.py). A Trainer holds
what they take and return, and applies one rule per method: resume, target,
validation data, non-finite losses, best checkpoint, plateau, interruption.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Iterator
from typing import Any, Self

import jax
import numpy as np

from gpt import devices, sharding, start
from gpt.data import prepare
from gpt.data.prepare import Dataset
from gpt.due import Due, what_is_due
from gpt.model import GPT, GPTConfig
from gpt.planning.clock import BudgetClock
from gpt.runs import failures, metrics, samples
from gpt.runs.checkpoint import BEST, LATEST
from gpt.runs.checkpoint_meta import options_of
from gpt.runs.checkpoint_writer import Checkpoints
from gpt.runs.config_file import CONFIG, save_config
from gpt.runs.console import Console
from gpt.runs.result import Result
from gpt.runs.workdir import Run
from gpt.tokenizers import Tokenizer
from gpt.training import lora, optimizer, plateau, schedules
from gpt.training.evaluation import Evaluator
from gpt.training.plateau import Plateau
from gpt.training.profiling import Profiler
from gpt.training.rows import local_rows, micro_batch_size
from gpt.training.state import TrainState, eval_params
from gpt.training.step import Frozen, jit_train_step

logger = logging.getLogger(__name__)


class Trainer:
  """A run being trained; a context manager that leaves no write unfinished.

  Attributes:
    run, config, tokenizer, dataset, budget: as given; after `start_or_resume`
      config.total_steps is the target.
    added_steps: whether the target came from --additional_steps.
    cfg, model, mesh, tx: what the state is made of and lives on.
    state: the TrainState, on the mesh once `begin` was called.
    frozen: the model's variables that are not trained (the base of LoRA).
    plateau: best loss and patience.
    first: completed steps at the start of this process.
    last: completed steps at its end, if nothing stops it.
    evaluate, clock, metrics_log, console: from `begin` on.
  """

  state: TrainState
  frozen: Frozen
  meta: dict
  plateau: Plateau
  first: int
  last: int
  added_steps: bool
  evaluate: Evaluator
  clock: metrics.Clock
  metrics_log: metrics.MetricsLog
  console: Console

  def __init__(
    self,
    run: Run,
    config: Any,
    tokenizer: Tokenizer,
    dataset: Dataset,
    budget: BudgetClock | None = None,
  ) -> None:
    self.run, self.config, self.budget = run, config, budget
    self.tokenizer, self.dataset = tokenizer, dataset
    self.cfg = GPTConfig.from_config(config.model, tokenizer.vocab_size)
    self.model = lora.adapted(GPT(self.cfg), config.opt)
    self.mesh = sharding.mesh_for(config, self.cfg)
    self.micro_batch = micro_batch_size(config, self.mesh)
    self.tx = optimizer.create(
      config, self.mesh, mixed=self.cfg.matmul_dtype == 'bfloat16'
    )
    self.checkpoints = Checkpoints(
      run.workdir, config.checkpoint.keep, options_of(self.cfg, config.opt)
    )
    self.validation = start.validation_key(config, dataset.corpus)
    self._init_key, self._dropout_key = jax.random.split(
      jax.random.key(config.seed)
    )
    # What `settle` and `__exit__` close.
    self._open: list[Console | Profiler] = []
    self._profiler: Profiler | None = None
    self._lr = 0.0
    # (step, metrics on device) not read yet.
    self._pending: tuple[int, dict] | None = None

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    try:
      self.settle()
    finally:
      self.checkpoints.close()
      self.run.presence.remove_remains()

  def settle(self) -> bool:
    """Ends the progress bar and waits for checkpoints.

    Returns:
      Whether the newest checkpoints are on disk.
    """
    while self._open:
      self._open.pop().close()
    return self.checkpoints.wait()

  def start_or_resume(
    self, init_from: str, additional_steps: int, base: str = ''
  ) -> None:
    """Restores, imports or initialises the state, and sets the target.

    `base`: where the base of adapters is now, if it has moved.
    """
    self.frozen = start.frozen_variables(
      self.run, self.config, self.model, init_from, base
    )
    self.state, self.meta = start.initial_state(
      self.run,
      self.config,
      self.model,
      self.tx,
      self._init_key,
      self.checkpoints,
      init_from,
      self.mesh,
    )
    self.first = int(self.state.step)
    self.plateau = Plateau(**self.meta.get('plateau', {}))
    if additional_steps:
      self.config = self.config.copy_and_resolve_references()
      self.config.total_steps = self.first + additional_steps
      self.run.changed.pop('total_steps', None)
      self.plateau = dataclasses.replace(
        self.plateau, stopped=False, evals_since_best=0
      )
    self.added_steps = bool(additional_steps)
    target = self.config.total_steps
    if self.budget:
      target = self.budget.begin(self.first, target)
    self.last = self.first if self.plateau.stopped else max(self.first, target)

  def nothing_to_do(self) -> bool:
    """True if the target was reached before and its last files are written."""
    target, stopped = self.config.total_steps, self.plateau.stopped
    if self.first < self.last:
      return False
    logger.info(
      f'Already at step {self.first} (target {target}). Nothing to train.'
    )
    if stopped:
      logger.info('The run stopped early; --additional_steps=N continues it.')
    lowered = self.first > target and not stopped
    if lowered or not metrics.lacks_end(self.run.workdir, self.first):
      return True
    logger.info('Its last files were not written: writing them now.')
    return False

  def begin(self, profile: bool) -> None:
    """Records what is trained, places the state, compiles the steps."""
    run, config, first = self.run, self.config, self.first
    run.interrupt.take_over()
    if run.leader:
      save_config(run.workdir, config)
      prepare.keep_record(run.workdir, self.dataset.corpus)
    self.state = sharding.place(self.state, self.mesh)
    self.frozen = sharding.place_frozen(self.frozen, self.mesh)
    self._rows = devices.padded_batch_size(
      config.batch_size, self.mesh, self.micro_batch
    )
    self._train_step = jit_train_step(
      self.model,
      self.tx,
      schedules.from_config(config),
      self.mesh,
      micro_batch_size=self.micro_batch,
      ema_decay=config.opt.ema_decay,
      min_lr=config.min_lr,
      moving_target=self.budget is not None,
    )
    self._aim_at(self.last)
    self.evaluate = Evaluator(self.model, self.mesh, self.dataset, self.frozen)
    trained = self.model, self.state, self.tokenizer
    start.announce(run, config, *trained, self.mesh, self.micro_batch)
    self.clock = metrics.Clock(self.meta.get('elapsed_s', 0.0))
    if self.budget:
      self.clock = self.budget.start(self.meta.get('elapsed_s'))
    self.metrics_log = metrics.MetricsLog(
      run.workdir, first, config.tensorboard, active=run.leader
    )
    run.on_close(self.metrics_log.close)
    self.console = Console(
      config, self.clock, first, self.metrics_log.recent_losses
    )
    self._open.append(self.console)
    if profile:
      self._profiler = Profiler(run.workdir / 'profile', first)
      self._open.append(self._profiler)
    if run.leader:
      samples.keep(run.workdir, first)
    self.checkpoints.tidy()
    run.presence.watch(self.checkpoints.directory, run.workdir / CONFIG)

  def check_presence(self, step: int) -> None:
    """Raises UserError if the workdir or its checkpoints are gone."""
    self.run.presence.check(step, self.checkpoints)

  def validate_once(self) -> None:
    """The evaluation before the first step: of a new run, or of new data."""
    if math.isfinite(self.plateau.best_loss):
      self._check_validation_data()
    if self.first == self.last and not self.checkpoints.has(LATEST, self.last):
      self.save(LATEST)  # A kill between saving the best and the latest.
    if self.first == 0:
      quick = self.quick_eval()
      logger.info(f'step 0 | val {quick["nats_per_token"]:.4f} before training')
      self.metrics_log.write(
        0,
        val_loss=quick['nats_per_token'],
        val_ppl=quick['ppl'],
        val_bits_per_byte=quick['bits_per_byte'],
      )

  def _check_validation_data(self) -> None:
    """Judges the weights anew if the best loss is of other validation data."""
    measured_on = self.meta.get('validation', self.validation)
    if measured_on == self.validation:
      return
    loss, best = self.quick_eval()['nats_per_token'], self.plateau.best_loss
    if measured_on:
      logger.info(
        f'the validation data has changed: step {self.first} has a loss of '
        f'{loss:.4f} on it (the best so far, {best:.4f}, is kept in '
        'checkpoints/replaced)'
      )
    elif abs(loss - best) > 1e-4:
      logger.info(
        f'the imported best loss, {best:.4f}, was measured on unknown data: '
        f'step {self.first} has a loss of {loss:.4f} on the validation data '
        '(the imported best is kept in checkpoints/replaced)'
      )
    if not self.checkpoints.replace_best(
      self.state, self.meta, self.validation
    ):
      raise failures.not_saved(self.checkpoints.last_error, self.run.workdir)
    self.plateau = plateau.judge_again(self.plateau, loss, self.first)
    self.save(BEST)

  def quick_eval(self) -> dict:
    """Validation loss on the fixed windows; see evaluation.Evaluator."""
    windows, began = self.config.eval.windows, time.perf_counter()
    found = self.evaluate(eval_params(self.state), 'val', windows)
    if self.budget:
      seconds, bits = time.perf_counter() - began, found['bits_per_byte']
      self.budget.evaluated(seconds, found['tokens'], bits)
    return found

  def _aim_at(self, total_steps: int) -> None:
    """Sets the target; one that may move is an argument of the step."""
    self.last, self._target = total_steps, ()
    if self.budget:
      total = np.int32(total_steps)
      self._target = (devices.put_replicated(total, self.mesh),)

  def steps(self) -> Iterator[int]:
    """The steps to make, up to a target that a budget may move meanwhile."""
    step = self.first
    while step < self.last:
      step += 1
      yield step

  def dispatch(self, step: int) -> None:
    """Starts a step, then reads the metrics of the one before it."""
    batch = local_rows(
      self.dataset, step - 1, self.config.batch_size, self._rows, self.mesh
    )
    batch = devices.put_batch(batch, self.mesh)
    if self._profiler:
      self._profiler.before(step)
    self.state, values = self._train_step(
      self.state, batch, self._dropout_key, self.frozen, *self._target
    )
    if self._profiler:
      self._profiler.after(step, self.state)
    self._read_pending()
    self._pending = step, values
    self.console.tick()

  def _read_pending(self) -> None:
    """Blocks until the pending step has finished; logs its metrics."""
    if self._pending is None:
      return
    step, values = self._pending
    self._pending = None
    values = {name: float(value) for name, value in values.items()}
    if not math.isfinite(values['loss'] + values['grad_norm']):
      # Checkpoint step - 1 holds the weights that produced this loss.
      self.checkpoints.set_aside(LATEST, step - 1)
      raise failures.not_finite(step, 'loss', values['lr'], self.run.workdir)
    self._lr = values['lr']
    loss = values['loss'] if values['tokens'] else math.nan
    self.metrics_log.write(
      step,
      loss=loss,
      lr=values['lr'],
      grad_norm=values['grad_norm'],
      tokens=values['tokens'],
    )
    self.console.add(values, timed=step > self.first + 1)

  def due(self, step: int) -> Due:
    """The actions due after `step`. A collective: all processes call it."""
    self.check_presence(step)
    if self.budget:
      self._keep_time(step, self.budget)
    due = what_is_due(step, self.first, self.last, self.config)
    stop = self.run.stop_requested(step, now=due.eval or due.save)
    return due._replace(stop=stop)

  def _keep_time(self, step: int, budget: BudgetClock) -> None:
    """Moves the target if the run would not end with its budget."""
    target = budget.after(step, self.config, self.dataset.targets('val'))
    if target is None:
      return
    self._aim_at(target.total_steps)
    self.console.aim_at(target.total_steps)
    self.config.total_steps = target.total_steps
    self.config.update_from_flattened_dict(budget.intervals(target))
    if self.run.leader:
      save_config(self.run.workdir, self.config)

  def pause(self, step: int, due: Due) -> bool:
    """Evaluates and saves what is due; returns whether the run ends here."""
    self._read_pending()  # The device is idle from here on.
    self.clock.pause()
    if self.budget:
      self.budget.pause(step)
    if due.eval:
      self._evaluate_step(step)
    ends = due.stop or self.plateau.stopped
    if due.save or ends:
      self.save(LATEST)
    self.clock.resume()
    if self.budget:
      self.budget.resume(due.eval)
    return ends

  def _evaluate_step(self, step: int) -> None:
    """One eval: loss, plateau, sample, best checkpoint, in this order.

    The sample is written before the checkpoint from which another process may
    resume, so that no step loses its sample.
    """
    run, config = self.run, self.config
    quick = self.quick_eval()
    loss = quick['nats_per_token']
    if quick['tokens'] and not math.isfinite(loss):
      raise failures.not_finite(step, 'validation loss', self._lr, run.workdir)
    self.plateau, message = plateau.update(self.plateau, config.opt, loss, step)
    self.metrics_log.write(
      step, **self.console.report(step, quick, self.plateau)
    )
    scale = np.float32(plateau.lr_scale(self.plateau, config.opt))
    scale = devices.put_replicated(scale, self.mesh)
    self.state = dataclasses.replace(self.state, lr_scale=scale)
    if message:
      logger.info(message)
    if config.eval.sample:
      self.write_sample(step)
    if self.plateau.best_step == step:
      self.save(BEST)

  def write_sample(self, step: int) -> str:
    """Samples from the weights of `step` into samples.txt; '' elsewhere."""
    self.check_presence(step)
    trained = sharding.to_host((eval_params(self.state), self.frozen))
    if not self.run.leader:
      return ''
    params = lora.whole(self.model, *trained)
    network = GPT(self.cfg), params, self.tokenizer
    return samples.write(self.config, *network, self.run.workdir, step)

  def save(self, which: str) -> None:
    """Starts writing a checkpoint; warns if the one before it failed."""
    self.check_presence(int(self.state.step))
    meta = {
      'plateau': dataclasses.asdict(self.plateau),
      'best_loss': self.plateau.best_loss,
      'validation': self.validation,
      'elapsed_s': self.clock.elapsed(),
    }
    if not self.checkpoints.save(which, self.state, meta):
      error = self.checkpoints.last_error
      if not failures.is_of_peer(error):  # launch.supervisor says who ended.
        logger.warning(failures.not_written(int(self.state.step), error))

  def result(self, outcome: str, final: dict | None = None) -> Result:
    """The Result of a run that ends at the current step."""
    return Result(
      outcome,
      int(self.state.step),
      self.plateau.best_loss,
      final or {},
      str(self.run.workdir),
    )
