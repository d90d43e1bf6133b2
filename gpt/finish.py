"""What a run leaves behind: a full evaluation, a sample, RandyGPT's files."""

import logging
import pathlib
import re

import jax

from gpt import devices
from gpt.decoding import prompt, sampling
from gpt.files import write_atomic
from gpt.formats import randygpt, randygpt_run
from gpt.runs import checkpoint
from gpt.runs.checkpoint import BEST
from gpt.training.evaluation import describe_parts

logger = logging.getLogger(__name__)

SAMPLES = 'samples.txt'


def full_evaluation(evaluate, params, mesh, workdir, step: int) -> dict:
  """{'final': ..., 'best': ...}: the whole validation split, once.

  'best' is left out if the final weights are the best ones, or the best ones
  cannot be read.

  Args:
    evaluate: a gpt.training.evaluation.Evaluator.
    params: the final weights (on the mesh), of `step`.
  """
  results = {'final': evaluate(params, 'val', None)}
  best = checkpoint.find(workdir, BEST)
  if int(best.name) != step:
    best_params = read_best(best, checkpoint.restore_params)
    if best_params is not None:
      best_params = devices.put_replicated(best_params, mesh)
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


def read_best(path, read):
  """read(path), or None and a warning for a checkpoint that is damaged."""
  try:
    return read(path)
  except MemoryError:
    raise
  except Exception as e:
    logger.warning(
      f'checkpoint {path} cannot be read ({checkpoint.reason(e)}) '
      'and is left out'
    )
    return None


def write_sample(config, model, params, tokenizer, workdir, step) -> str:
  """Adds a sample of the current weights to samples.txt; returns it.

  A chat model's is its answer, on a line of its own. Documents end where the
  window does; text goes on.
  """
  given, format = config.sample.prompt, config.data.format
  block_size = model.cfg.block_size
  start = prompt.read_prompt(
    tokenizer, format, given, block_size, config.sample.max_tokens
  )
  text = ''.join(
    prompt.complete(
      model,
      jax.device_get(params),
      tokenizer,
      start,
      sampling.settings(
        1,
        seed=config.seed,
        temperature=config.sample.temperature,
        top_p=config.sample.top_p,
        top_k=config.sample.top_k,
      ),
      config.sample.max_tokens,
      prompt.window_mode(start, format, block_size),
    )
  )
  if format == 'chat' and given:
    text = f'\n{text}'
  keep_samples(workdir, step - 1)  # The last eval may have written this one.
  path = pathlib.Path(workdir) / SAMPLES
  with path.open('a', encoding='utf-8', newline='') as file:
    file.write(f'--- step {step}\n{config.sample.prompt}{text}\n')
  return text


def keep_samples(workdir, step: int) -> None:
  """Drops the samples after a step: a run that resumes there writes them."""
  path = pathlib.Path(workdir) / SAMPLES
  if not path.exists():
    return
  with path.open(encoding='utf-8', newline='') as file:
    text = file.read()
  for match in re.finditer(r'^--- step (\d+)$', text, re.MULTILINE):
    if int(match[1]) > step:
      write_atomic(path, text[: match.start()].encode())
      return


def write_rgpt_files(cfg, state, best_loss: float, workdir) -> None:
  """checkpoint.bin and checkpoint_best.bin, where RGPT can express the model.

  Args:
    state: the latest TrainState, on host or device.
    best_loss: nats/token; inf before any eval.
  """
  if randygpt.obstacles(cfg):
    return
  state, names = jax.device_get(state), ['checkpoint.bin']
  randygpt_run.write_state(workdir / names[0], state, best_loss)
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
  logger.info(
    f'wrote {" and ".join(names)} in {workdir}{notes and f" ({notes})"}'
  )
