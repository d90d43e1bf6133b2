"""Facts about a run and its model: a dict for programs, a page for people."""

import dataclasses
import importlib.metadata
import math
import os
import platform

import jax

from gpt.model.config import describe_options
from gpt.runs import base, checkpoint_meta
from gpt.runs.load import LoadedModel, params_sha256
from gpt.runs.metrics import duration
from gpt.tokenizers import chat_format

PACKAGES = {
  'rgpt': 'rgpt',
  'jax': 'jax',
  'jaxlib': 'jaxlib',
  'flax': 'flax',
  'optax': 'optax',
  'orbax': 'orbax-checkpoint',
  'numpy': 'numpy',
}


def describe(loaded: LoadedModel, workdir: str | os.PathLike) -> dict:
  """JSON-able facts about a run and the checkpoint that was loaded.

  Returns:
    workdir, name, which, checkpoint (its path), step, total_steps (the
    target), best_loss (nats/token on the validation estimate), elapsed_s (of
    training), architecture (every field of GPTConfig), parameters (how many
    numbers), params_sha256 (see load.params_sha256), base (of adapters: the
    content of base.json; else None), tokenizer, data (text, description,
    text_sha256), checkpoints ({'best': [steps], 'latest':
    [steps]}), versions, config (the run's, all of it).
  """
  tokenizer, meta = loaded.tokenizer, loaded.meta
  return {
    'workdir': str(workdir),
    'name': loaded.name,
    'which': loaded.which,
    'checkpoint': str(loaded.path),
    'step': loaded.step,
    'total_steps': loaded.config['total_steps'],
    'best_loss': finite(meta.get('best_loss')),
    'elapsed_s': finite(meta.get('elapsed_s')),
    'architecture': dataclasses.asdict(loaded.cfg),
    'parameters': sum(x.size for x in jax.tree.leaves(loaded.params)),
    'params_sha256': params_sha256(loaded.params),
    'base': dataclasses.asdict(base.read_record(workdir))
    if base.has_record(workdir)
    else None,
    'tokenizer': {
      'kind': tokenizer.kind,
      'vocab_size': tokenizer.vocab_size,
      'special_tokens': tokenizer.special_tokens,
      'fingerprint': tokenizer.fingerprint,
      'chat': chat_format.describe(tokenizer),
    },
    'data': {'path': loaded.config['data']['path'], **loaded.data},
    'checkpoints': checkpoint_meta.steps_by_kind(loaded.path.parent.parent),
    'versions': versions(),
    'config': loaded.config,
  }


def versions() -> dict:
  """Installed versions by short name; None where a package is missing."""
  found: dict[str, str | None] = {'python': platform.python_version()}
  for name, package in PACKAGES.items():
    try:
      found[name] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      found[name] = None
  return found


def finite(x: float | None) -> float | None:
  """JSON knows no inf or nan."""
  return None if x is None or not math.isfinite(x) else float(x)


def page(facts: dict, more: dict[str, str] | None = None) -> str:
  """The facts of `describe` for people, one topic per line, and `more`."""
  lines = {
    'run': f'{facts["workdir"]} ({facts["name"]})',
    'checkpoint': _checkpoint_line(facts),
    'architecture': _architecture_line(facts['architecture']),
    'parameters': _parameters_line(facts),
    'tokenizer': _tokenizer_line(facts['tokenizer']),
    'data': facts['data'].get('description') or facts['data']['path'],
    'checkpoints': '; '.join(
      f'{which}: {", ".join(map(str, steps)) or "none"}'
      for which, steps in facts['checkpoints'].items()
    ),
    'versions': ', '.join(
      f'{name} {version or "missing"}'
      for name, version in facts['versions'].items()
    ),
    'params_sha256': facts['params_sha256'],
    **(more or {}),
  }
  width = max(map(len, lines))
  return '\n'.join(f'{name:{width}}  {text}' for name, text in lines.items())


def _checkpoint_line(facts: dict) -> str:
  parts = [f'{facts["which"]}, step {facts["step"]} of {facts["total_steps"]}']
  if facts['best_loss'] is not None:
    parts.append(f'best val loss {facts["best_loss"]:.4f} nats/token')
  if facts['elapsed_s']:
    parts.append(f'after {duration(facts["elapsed_s"])}')
  return ', '.join(parts)


def _parameters_line(facts: dict) -> str:
  if facts['base'] is None:
    return f'{facts["parameters"]:,}'
  rank, source = facts['config']['opt']['lora_rank'], facts['base']['source']
  return (
    f'{facts["parameters"]:,}, adapters of rank {rank} merged into {source}'
  )


def _architecture_line(options: dict) -> str:
  arch, *phrases = describe_options(options)
  return f'{arch}: {", ".join(phrases)}'


def _tokenizer_line(tokenizer: dict) -> str:
  extra = [
    name
    for name in tokenizer['special_tokens']
    if name not in ('<|bos|>', '<|eos|>')
  ]
  with_extra = f', with {", ".join(extra)}' if extra else ''
  chat = f'; chat: {tokenizer["chat"]}' if tokenizer['chat'] else ''
  size = f'{tokenizer["vocab_size"]:,} tokens'
  return f'{tokenizer["kind"]}, {size}{with_extra}{chat}'
