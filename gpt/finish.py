"""The end of a run: a full evaluation, a sample, RandyGPT's files."""

import logging
import os
from collections.abc import Callable
from typing import Any

from gpt import sharding
from gpt.formats import randygpt, randygpt_run
from gpt.runs import checkpoint, failures, metrics
from gpt.runs.checkpoint import BEST
from gpt.runs.format_version import NewerFormat
from gpt.runs.result import Result
from gpt.trainer import Trainer
from gpt.training.evaluation import describe_parts
from gpt.training.state import eval_params

logger = logging.getLogger(__name__)


def finish_run(trainer: Trainer) -> Result:
  """Waits for checkpoints, then writes what a finished run leaves behind.

  Call it after the last step.

  Raises:
    UserError: the last checkpoint could not be written.
  """
  saved = trainer.settle()
  run, config, step = trainer.run, trainer.config, int(trainer.state.step)
  outcome = 'early stop' if trainer.plateau.stopped else 'finished'
  if step < config.total_steps and not trainer.plateau.stopped:
    outcome = 'interrupted'
  trainer.check_presence(step)
  if not saved:
    raise failures.not_saved(trainer.checkpoints.last_error, run.workdir)
  write_rgpt_files(trainer)
  final = {}
  if outcome != 'interrupted':
    if config.eval.full_at_end:
      final = full_evaluation(trainer, step)
    prompt, text = config.sample.prompt, trainer.write_sample(step)
    logger.info(f'sample after {prompt!r}:\n{prompt}{text}')
    elapsed = trainer.clock.elapsed()
    trainer.metrics_log.write_end(step, outcome, final, elapsed)
    if trainer.budget and run.leader:
      trainer.budget.finish(step, final)
  _log_end(trainer, outcome, step)
  return trainer.result(outcome, final)


def _log_end(trainer: Trainer, outcome: str, step: int) -> None:
  best, plateau = '', trainer.plateau
  if plateau.best_step >= 0:
    best = f'; best val {plateau.best_loss:.4f} at step {plateau.best_step}'
  duration = metrics.duration(trainer.clock.elapsed())
  if outcome != 'interrupted':
    logger.info(f'{outcome} at step {step} after {duration}{best}')
    return
  workdir = trainer.run.workdir
  again = (
    f'Continue with: python -m launch.train --workdir={workdir}'
    if trainer.added_steps
    else 'Run the same command again to continue.'
  )
  logger.info(
    f'Interrupted at step {step}. Saved in {workdir}/checkpoints.\n'
    f'{duration} so far{best}. {again}'
  )


def full_evaluation(trainer: Trainer, step: int) -> dict:
  """{'final': ..., 'best': ...}: full passes over the validation split.

  'best' is left out if the final weights, of `step`, are the best ones, or if
  the best cannot be read.
  """
  evaluate = trainer.evaluate
  results = {'final': evaluate(eval_params(trainer.state), 'val', None)}
  best = checkpoint.find(trainer.run.workdir, BEST)
  if int(best.name) != step:
    best_params = read_best(best, checkpoint.restore_params)
    if best_params is not None:
      best_params = sharding.place(best_params, trainer.mesh)
      results['best'] = evaluate(best_params, 'val', None)
  for which, values in results.items():
    logger.info(
      f'full validation pass, {which} weights: '
      f'{values["nats_per_token"]:.4f} nats/token, ppl {values["ppl"]:.2f}, '
      f'{values["bits_per_byte"]:.4f} bits/byte over {values["tokens"]} tokens'
    )
    for line in describe_parts(values):
      logger.info(f'  {line}')
  return results


def read_best(
  path: str | os.PathLike, read: Callable[[str | os.PathLike], Any]
) -> Any:
  """read(path), or None and a warning if the checkpoint is damaged."""
  try:
    return read(path)
  except (MemoryError, NewerFormat):
    raise
  except Exception as e:
    logger.warning(
      f'checkpoint {path} cannot be read ({checkpoint.reason(e)}) and is left '
      'out'
    )
    return None


def write_rgpt_files(trainer: Trainer) -> None:
  """checkpoint.bin and checkpoint_best.bin, if RGPT can hold the model."""
  if trainer.frozen or randygpt.obstacles(trainer.cfg):
    return
  workdir, names = trainer.run.workdir, ['checkpoint.bin']
  state = sharding.to_host(trainer.state)
  if not trainer.run.leader:
    return
  randygpt_run.write_state(workdir / names[0], state, trainer.plateau.best_loss)
  path = checkpoint.find(workdir, BEST)
  if path.parent.name == BEST:
    best = read_best(path, lambda p: checkpoint.restore_state(p, state))
    if best is not None:
      names.append('checkpoint_best.bin')
      best_state, meta = best
      randygpt_run.write_state(
        workdir / names[1], best_state, meta['best_loss']
      )
  notes = '; '.join(randygpt_run.notes_on(state))
  suffix = f' ({notes})' if notes else ''
  logger.info(f'wrote {" and ".join(names)} in {workdir}{suffix}')
