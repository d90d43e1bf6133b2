"""config.json: what a run was configured with, and what may change on resume.

Imports no JAX: launchers read it before they choose devices.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gpt.errors import UserError
from gpt.fields import Fields
from gpt.files import read_json, write_atomic
from gpt.model.config import GPTConfig, option_names
from gpt.model.options import FUNCTION, RUNTIME, SHAPE
from gpt.runs.checkpoint_meta import (
  CONFIG,
  SEALED,
  are_sealed,
  check_model,
  may_be_sealed,
)
from gpt.runs.format_version import FORMAT_KEY, FORMAT_VERSION, check_version

# The keys that every run since 0.1 has, by type; gpt/config_check.py knows what
# else a run needs of them, and GPTConfig checks `model`.
GROUPS = ('opt', 'data', 'eval', 'checkpoint', 'sample', 'parallel')
INTEGERS = """seed batch_size total_steps opt.warmup_steps opt.muon_steps
  opt.plateau_patience opt.plateau_max_reductions data.vocab_size eval.every
  eval.windows checkpoint.every checkpoint.keep sample.max_tokens sample.top_k
  parallel.num_cpu_devices parallel.micro_batch_size""".split()
NUMBERS = """lr min_lr opt.decay_fraction opt.b1 opt.b2 opt.eps opt.weight_decay
  opt.clip_value opt.muon_lr opt.muon_momentum opt.ema_decay opt.plateau_factor
  data.val_fraction sample.temperature sample.top_p""".split()
FLAGS = """data.document_aware data.skip_long data.packing eval.full_at_end
  eval.sample parallel.distributed tensorboard""".split()
TEXTS = """opt.name opt.schedule opt.clip data.path data.format data.tokenizer
  data.tokenizer_path data.document_separator data.loss_on data.cache_dir
  sample.prompt""".split()
FIXED_KEYS = (
  'data.format',
  'data.tokenizer',
  'data.tokenizer_path',
  'data.chat_template',
  'data.vocab_size',
  'opt.name',
  'opt.lora_rank',
  'opt.lora_alpha',
  'opt.lora_targets',
)


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """{'model': {'n_embd': 1}} -> {'model.n_embd': 1}."""
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat |= flatten(value, f'{prefix}{name}.')
    else:
      flat[prefix + name] = value
  return flat


def plain(config: Any) -> dict:
  """A ConfigDict as JSON-able dicts (tuples become lists)."""
  return json.loads(json.dumps(config.to_dict()))


def save_config(workdir: str | os.PathLike, config: Any) -> None:
  """Writes config.json atomically."""
  tree = {**plain(config), FORMAT_KEY: FORMAT_VERSION}
  # The second reads config.json again: only where the first says no.
  if may_be_sealed(workdir) or are_sealed(workdir):
    tree[SEALED] = True
  text = json.dumps(tree, indent=2) + '\n'
  write_atomic(pathlib.Path(workdir) / CONFIG, text.encode())


def read_config(workdir: str | os.PathLike) -> dict | None:
  """The saved configuration as nested dicts; None if no run has begun here.

  Raises:
    UserError: the file is damaged, foreign, or of a newer version of rgpt.
  """
  path = pathlib.Path(workdir) / CONFIG
  try:
    config = read_json(path, infinite=True)  # opt.clip_value may be inf.
  except UserError as e:
    if isinstance(e.__cause__, FileNotFoundError | NotADirectoryError):
      return None
    raise
  check_version(config.pop(FORMAT_KEY, 1), path)
  config.pop(SEALED, None)
  if not isinstance(config.get('model'), dict) or 'total_steps' not in config:
    raise UserError(
      f'{path} was not written by this program and will not be overwritten. '
      'Name another --workdir'
    )
  top = Fields(config, path)
  groups = {'': top} | {name: top.mapping(name) for name in GROUPS}

  def fields(keys: Iterable[str]) -> Iterator[tuple[Fields, str]]:
    for key in keys:
      group, _, name = key.rpartition('.')
      yield groups[group], name

  for group, name in fields(INTEGERS):
    group.integer(name, 0, 2**53)
  for group, name in fields(NUMBERS):
    group.number(name, -math.inf, math.inf)
  for group, name in fields(FLAGS):
    group.flag(name)
  for group, name in fields(TEXTS):
    group.text(name)
  if groups['opt'].integer('lora_rank', 0, 2**31, 0):
    groups['opt'].number('lora_alpha', 0, math.inf)
    groups['opt'].text('lora_targets')
  groups['data'].text('chat_template', '')
  top.text('budget', '', most=40)
  groups['data'].text('text_field', '')
  groups['data'].text('order', '')
  groups['parallel'].text('data', 'auto')
  for name in ('fsdp', 'tensor', 'join_s', 'heartbeat_s'):
    groups['parallel'].integer(name, 1, 2**31, 1)
  return config


def read_configs(
  workdir: str | os.PathLike, vocab_size: int
) -> tuple[dict[str, Any], GPTConfig]:
  """A run's configuration, and the shape of its model on this backend.

  Raises:
    UserError: no config.json, one that this version cannot use, or one of
      another model than the checkpoints hold.
  """
  path = pathlib.Path(workdir) / CONFIG
  config = read_config(workdir)
  if config is None:
    raise UserError(
      f'{workdir} holds checkpoints but no {CONFIG}: the run is incomplete. '
      'Name another --workdir, or put the file back'
    )
  try:
    # The kernel that trained it does not matter here.
    options = {**config['model'], 'attention': 'auto'}
    cfg = GPTConfig.from_config(options, vocab_size)
  except UserError as e:
    raise UserError(f'{path}: {e}') from e
  except (KeyError, TypeError) as e:
    raise UserError(
      f'{path} is not a config of this version of rgpt: {e}'
    ) from e
  check_model(workdir, cfg, config['opt'])
  return config, cfg


def with_later_options(saved: Mapping[str, Any]) -> dict[str, Any]:
  """The flat keys of a run, with those of the model that it is too old for.

  Such an option has its default there: what the model did before it came.
  """
  names = option_names(SHAPE, FUNCTION)
  usual = {
    f'model.{x.name}': x.default
    for x in dataclasses.fields(GPTConfig)
    if x.name in names and x.default is not dataclasses.MISSING
  }
  return usual | dict(saved)


def differences(saved: dict, config: Any) -> dict:
  """{key: (saved, now)} of all keys that differ.

  A model.dtype of 'auto' is that of the run, whatever it is.
  """
  old, new = (with_later_options(flatten(x)) for x in (saved, plain(config)))
  if new.get('model.dtype') == 'auto':
    new['model.dtype'] = old.get('model.dtype')
  return {
    key: (old.get(key), new.get(key))
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key)
  }


def is_fixed(key: str, old: Any, new: Any) -> bool:
  """Whether a run cannot resume with this change of a key."""
  if key == 'opt.ema_decay':  # Another decay is fine; on or off is not.
    return not old or not new
  if old is None:  # The key did not exist when the run began.
    return key == 'opt.lora_rank' and bool(new)
  group, _, name = key.partition('.')
  free = option_names(RUNTIME)
  return key in FIXED_KEYS or (group == 'model' and name not in free)


def changed_keys(saved: dict, config: Any, workdir: str | os.PathLike) -> dict:
  """{key: (saved, now)} of the keys that differ and may change on resume.

  Raises:
    UserError: model, tokenizer or optimizer differ; names the keys.
  """
  changed = differences(saved, config)
  fixed = {key: pair for key, pair in changed.items() if is_fixed(key, *pair)}
  if fixed:
    lines = [f'  {key}: {a!r} -> {b!r}' for key, (a, b) in fixed.items()]
    raise UserError(
      f'{workdir} holds a run with another model, tokenizer or optimizer:\n'
      + '\n'.join(lines)
      + '\nRestore the old values, or choose another --workdir'
    )
  return changed
