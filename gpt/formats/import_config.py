"""The configuration of a run that is made from another program's model."""

import json
from collections.abc import Mapping
from typing import Any

from gpt.data.sources import imported
from gpt.errors import UserError
from gpt.fields import Fields
from gpt.formats.directories import ForeignModel
from gpt.model import GPTConfig
from gpt.model.config import option_names
from gpt.model.options import RUNTIME
from gpt.runs.config_file import flatten

# microgpt's own hyperparameters, for a run that continues from its weights.
MICROGPT = {
  'lr': 1e-3,
  'min_lr': 0.0,
  'batch_size': 8,
  'total_steps': 5000,
  'model.dropout': 0.0,
  'opt.schedule': 'linear_warmup',
  'opt.warmup_steps': 200,
  'opt.b1': 0.85,
  'opt.b2': 0.99,
  'opt.weight_decay': 0.0,
  'opt.clip': 'none',
  'opt.plateau_patience': 0,
  'sample.prompt': '',
  'sample.temperature': 0.5,
  'sample.top_p': 1.0,
}
# For a pretrained model that goes on with a text of the user: a low rate, so
# that it keeps what it knows, and batches that fit a laptop.
FINE_TUNING = {
  'lr': 2e-5,
  'min_lr': 2e-6,
  'batch_size': 8,
  'total_steps': 500,
  'model.dropout': 0.0,
  'opt.schedule': 'wsd',
  'opt.warmup_steps': 20,
  'opt.b2': 0.99,
  'opt.weight_decay': 0.0,
  'opt.clip': 'global_norm',
  'opt.clip_value': 1.0,
  'opt.plateau_patience': 0,
  'eval.windows': 16,
  'sample.prompt': '',
}
# Columns of a model that could have more. Its cache grows with them: at 2,048,
# one conversation with SmolLM2-135M takes 94 MB, with Llama 3.2 1B 134 MB.
CONTEXT = 2048


def fill_in(
  config: Any,
  foreign: ForeignModel,
  defaults: Mapping[str, Any],
  overrides: Mapping[str, Any],
) -> GPTConfig:
  """Completes `config` for a model that was read; returns the model's.

  Args:
    config: ConfigDict of configs/default.py.
    defaults: flat keys that win over those of `config`.
    overrides: flat keys of the user, which win over all but the model's shape
      and function.
  """
  config.update_from_flattened_dict(dict(defaults))
  record = Fields(foreign.record, 'config.json: rgpt')
  take_over(config, record.mapping('config', {}).values)
  config.update_from_flattened_dict(dict(overrides))
  n = foreign.tokenizer.vocab_size
  cfg = GPTConfig.from_config(config.model, n)
  free = {
    name for name in option_names(RUNTIME) if f'model.{name}' in overrides
  }
  for name, value in foreign.options.items():
    # An equal value may stay written as 'auto'.
    if name not in free and getattr(cfg, name) != value:
      config.model[name] = value
  config.data.tokenizer = foreign.tokenizer.kind
  config.data.tokenizer_path = ''
  return GPTConfig.from_config(config.model, n)


def take_over(config: Any, saved: Mapping[str, Any]) -> None:
  """Takes over the saved keys that exist in `config` and have its types.

  Paths are of another machine, and never used here.
  """
  known = flatten(json.loads(json.dumps(config.to_dict())))
  for key, value in flatten(saved).items():
    if key == 'data.path' and isinstance(value, str):
      value = imported(value)
    elif key in ('data.cache_dir', 'data.chat_template'):
      continue
    if key in known and isinstance(value, type(known[key])):
      config.update_from_flattened_dict({key: value})


def set_context(foreign: ForeignModel, wanted: int, most: int) -> str:
  """Sets the context of a model that was read; returns a note for the user.

  Args:
    wanted: columns to keep; 0: all of them, but at most `most` of a model of
      another program.

  Raises:
    UserError: more than the model has.
  """
  options, has = foreign.options, foreign.options['block_size']
  if wanted > has:
    raise UserError(
      f'--block_size={wanted} is more than the context of this model, {has}'
    )
  kept = wanted or (has if foreign.record else min(has, most))
  if kept == has:
    return ''
  options['block_size'] = kept
  if 'wpe' in foreign.params:
    foreign.params['wpe'] = foreign.params['wpe'][:kept].copy()
  why = '' if wanted else ', to keep the cache small'
  return (
    f'context: {kept:,} of the {has:,} tokens this model can look back{why}; '
    f'--block_size=N sets it'
  )
