"""samples.txt: what the model generated at each eval and at the end."""

import os
import pathlib
import re
from typing import Any

import jax

from gpt.decoding import prompt, sampling
from gpt.model import GPT
from gpt.model.params import Params
from gpt.runs import log_file
from gpt.tokenizers import Tokenizer

FILE = 'samples.txt'
# More digits than a step has are text that a model wrote.
_HEAD = re.compile(rb'^--- step (\d{1,15})\n', re.MULTILINE)


def write(
  config: Any,
  model: GPT,
  params: Params,
  tokenizer: Tokenizer,
  workdir: str | os.PathLike,
  step: int,
) -> str:
  """Appends a sample of the current weights to samples.txt; returns it.

  A chat model answers the prompt, on a line of its own. Documents end at the
  window; plain text slides past it.

  Args:
    config: ConfigDict of the run (sample, seed, data.format).
    params: the weights, on device or host.
    step: completed steps; replaces a sample of the same step.
  """
  given, format = config.sample.prompt, config.data.format
  block_size = model.cfg.block_size
  start = prompt.read_prompt(
    tokenizer, format, given, block_size, config.sample.max_tokens
  )
  settings = sampling.settings(
    1,
    seed=config.seed,
    temperature=config.sample.temperature,
    top_p=config.sample.top_p,
    top_k=config.sample.top_k,
  )
  pieces = prompt.complete(
    model,
    jax.device_get(params),
    tokenizer,
    start,
    settings,
    config.sample.max_tokens,
    prompt.window_mode(start, format, block_size),
  )
  text = ''.join(pieces)
  if format == 'chat' and given:
    text = f'\n{text}'
  keep(workdir, step - 1)  # The last eval may have written this one.
  file = log_file.LogFile(pathlib.Path(workdir) / FILE)
  file.append(f'--- step {step}\n{given}{text}\n'.encode('utf-8', 'replace'))
  file.close()
  return text


def keep(workdir: str | os.PathLike, step: int) -> None:
  """Drops samples after `step`: a run that resumes there writes them again."""
  path = pathlib.Path(workdir) / FILE
  log_file.set_aside(path)
  if not path.is_file():
    return
  data = log_file.read(path)
  for match in re.finditer(rb'^--- step (\d{1,15})$', data, re.MULTILINE):
    if int(match[1]) > step:
      log_file.replace(path, data[: match.start()])
      return


def read(workdir: str | os.PathLike) -> list[tuple[int, str]]:
  """[(step, text)], oldest first; [] if there is no samples.txt.

  Bytes that are no UTF-8 become U+FFFD.
  """
  path = pathlib.Path(workdir) / FILE
  if not path.exists():
    return []
  parts = _HEAD.split(log_file.read(path))
  return [
    (int(step), text.decode('utf-8', 'replace').removesuffix('\n'))
    for step, text in zip(parts[1::2], parts[2::2])
  ]
