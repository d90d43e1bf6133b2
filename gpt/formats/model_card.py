"""The README.md of an exported model."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from gpt.decoding import prompt, sampling
from gpt.formats.directories import Path
from gpt.formats.markdown import escape, fence, table
from gpt.model.config import option_rows
from gpt.runs import metrics
from gpt.runs.info import finite
from gpt.runs.load import LoadedModel
from gpt.runs.metrics import number
from gpt.tokenizers.chat_format import is_chat_tokenizer

QUESTION = 'Hello! Who are you?'


def card(
  loaded: LoadedModel,
  workdir: Path,
  rounding: Mapping[str, Any] | None,
  hf_class: str = '',
) -> str:
  """Markdown with the placeholder '{tokenizer_note}'.

  Args:
    workdir: of the run, for its numbers.
    rounding: of tensors.rounding_report; None for float32.
    hf_class: the class of transformers; '': our own, with its code.
  """
  cfg, config = loaded.cfg, loaded.config
  n = sum(np.size(x) for x in jax.tree.leaves(loaded.params))
  data = loaded.data.get('description') or config['data']['path']
  start, text = sample(loaded)
  title = f'{cfg.arch}-{cfg.n_layer}L-{cfg.n_head}H-{cfg.n_embd}D'
  quoted = fence(f'{start}{text}')
  code = usage(loaded, own_code=not hf_class)
  origin = (
    f'It loads as `{hf_class}`, a class of transformers.'
    if hf_class
    else "The model's own code (`modeling_rgpt.py`) comes with it, hence\n"
    '`trust_remote_code`.'
  )
  shape = {
    'parameters': f'{n:,}',
    'vocabulary': f'{cfg.vocab_size:,} ({loaded.tokenizer.kind})',
    **option_rows(cfg),
  }
  numbers = numbers_of(loaded, workdir)
  if rounding:
    numbers |= {
      'weights': rounding['dtype'],
      'largest change of a logit by rounding': (
        f'{rounding["max_error"]:.2g} (logits up to '
        f'{rounding["max_logit"]:.3g})'
      ),
    }
  return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [rgpt, {cfg.arch}]
---

# {title}

A small GPT ({metrics.count(n)} parameters, architecture `{cfg.arch}`) trained
with rgpt. It continues text of the kind it was trained on. It knows nothing
else, and its statements are not reliable.

## Use

{code}

{origin} {{tokenizer_note}}

## Data

{fence(data)}

## Architecture

{table(shape)}

## Training and numbers

{table(numbers)}

Validation losses are on held-out text of the same source.

## A sample

Seed {escape(config['seed'])}, temperature
{escape(number(config['sample']['temperature'], 'g'))}, top-p
{escape(number(config['sample']['top_p'], 'g'))}, not selected:

{quoted}
"""


def numbers_of(loaded: LoadedModel, workdir: Path) -> dict[str, str]:
  """{label: value} about the training run, from metadata and metrics.jsonl."""
  config = loaded.config
  opt = config['opt']
  batch = config['batch_size']
  tokens = 0
  if metrics.is_number(batch):
    tokens = loaded.step * batch * loaded.cfg.block_size
  rows = {
    'step': f'{loaded.step:,} of {number(config["total_steps"], ",")}',
    'tokens seen': f'{metrics.count(tokens)} at most' if tokens else '0',
    'batch': f'{batch} sequences',
    'optimizer': (
      f'{opt["name"]}, lr {number(config["lr"], "g")}, {opt["schedule"]}'
    ),
    'dropout': number(config['model']['dropout'], 'g'),
  }
  if seconds := finite(loaded.meta.get('elapsed_s')):
    rows['training time'] = metrics.duration(seconds)
  best = finite(loaded.meta.get('best_loss'))
  if best is not None:
    rows['best validation loss (estimate)'] = f'{best:.4f} nats/token'
  for which in ('best', 'final'):
    found = full_pass_result(workdir, which)
    if found:
      rows[f'full validation pass, {which} weights'] = found
  return rows


def full_pass_result(workdir: Path, which: str) -> str:
  """Result of the full pass at the end of the run; '' if there was none."""
  end = metrics.end_of(metrics.read_lines(workdir))
  nats = end.get(f'full_{which}_nats_per_token')
  if nats is None:
    return ''
  bits = end.get(f'full_{which}_bits_per_byte')
  more = f', {number(bits, ".4f")} bits/byte' if bits is not None else ''
  return f'{number(nats, ".4f")} nats/token{more}'


def sample(loaded: LoadedModel) -> tuple[str, str]:
  """(prompt, completion) with the run's own sampling settings and seed."""
  config, tokenizer = loaded.config, loaded.tokenizer
  settings = config['sample']
  params = sampling.settings(
    1,
    seed=config['seed'],
    temperature=settings['temperature'],
    top_p=settings['top_p'],
    top_k=settings['top_k'],
  )
  text, length = settings['prompt'], max(1, settings['max_tokens'])
  chat = is_chat(loaded)
  text = text or QUESTION if chat else text
  start = prompt.read_prompt(
    tokenizer, config['data']['format'], text, loaded.cfg.block_size, length
  )
  format = config['data']['format']
  new = prompt.complete(
    loaded.model,
    loaded.params,
    tokenizer,
    start,
    params,
    length,
    prompt.window_mode(start, format, loaded.cfg.block_size),
  )
  shown = f'user: {text}\nassistant: ' if chat else text
  return shown, ''.join(new)


def is_chat(loaded: LoadedModel) -> bool:
  """Whether the model was trained on conversations."""
  chat = loaded.config['data']['format'] == 'chat'
  return chat and is_chat_tokenizer(loaded.tokenizer)


def usage(loaded: LoadedModel, own_code: bool) -> str:
  """A Markdown block of code that loads the directory and generates.

  Args:
    own_code: whether transformers must run code of the directory.
  """
  trust = ', trust_remote_code=True' if own_code else ''
  config = loaded.config
  text = repr(config['sample']['prompt'])
  if config['data']['format'] == 'lines' or text == "''":
    text = f'tokenizer.bos_token + {text}'.removesuffix(" + ''")
  lines = [
    'from transformers import AutoModelForCausalLM, AutoTokenizer',
    '',
    f"model = AutoModelForCausalLM.from_pretrained('.'{trust})",
    f"tokenizer = AutoTokenizer.from_pretrained('.'{trust})",
  ]
  if is_chat(loaded):
    text = repr(config['sample']['prompt'] or QUESTION)
    lines += [
      f"chat = [{{'role': 'user', 'content': {text}}}]",
      'inputs = tokenizer.apply_chat_template(',
      '  chat, add_generation_prompt=True, return_dict=True, '
      "return_tensors='pt'",
      ')',
    ]
  else:
    lines.append(f"inputs = tokenizer({text}, return_tensors='pt')")
  lines += [
    'out = model.generate(**inputs, max_new_tokens=200)',
    'print(tokenizer.decode(out[0], skip_special_tokens=True))',
  ]
  return fence('\n'.join(lines), 'python')
