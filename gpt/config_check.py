"""Checks of a config before anything starts.

A value that no run can use would otherwise show up at the first save, or as a
run that learns nothing.
"""

import math
from typing import Any

from gpt import devices
from gpt.data import text_choice
from gpt.data.text_dataset import ORDERS
from gpt.data.tokenizer_choice import asked_template
from gpt.errors import UserError
from gpt.model import GPTConfig
from gpt.runs.config_file import flatten
from gpt.training import lora, optimizer, schedules

AT_LEAST_ONE = (
  'batch_size',
  'total_steps',
  'eval.every',
  'eval.windows',
  'checkpoint.keep',
  'sample.max_tokens',
)
NOT_NEGATIVE = (
  'seed',
  'checkpoint.every',
  'opt.plateau_patience',
  'opt.plateau_max_reductions',
  'sample.temperature',
  'sample.top_k',
  'parallel.num_cpu_devices',
  'parallel.micro_batch_size',
)
LOSSES = ('all', 'assistant')


def check_config(config: Any) -> None:
  """Raises UserError for a value of `config` that no run can use.

  Args:
    config: ConfigDict with the keys of configs/default.py.
  """
  if unset := [k for k, x in flatten(config.to_dict()).items() if x is None]:
    raise UserError(
      f'{", ".join(unset[:3])} have no value: a budget chooses them when '
      'launch.train starts; launch.plan shows what it would choose'
    )
  for key in AT_LEAST_ONE:
    if not _value(config, key) >= 1:
      raise UserError(f'{key} {_value(config, key)} must be at least 1')
  for key in NOT_NEGATIVE:
    if not _value(config, key) >= 0:
      raise UserError(f'{key} {_value(config, key)} must not be negative')
  for key, value in flatten(config.to_dict()).items():
    finite = not isinstance(value, float) or math.isfinite(value)
    if not finite and (key, value) != ('opt.clip_value', math.inf):
      raise UserError(f'{key} {value} is not a finite number')
  if config.seed >= 2**32:
    raise UserError(f'seed {config.seed} must be below 2^32')
  if not 0 <= config.opt.ema_decay < 1:
    raise UserError(f'opt.ema_decay {config.opt.ema_decay} is not in [0, 1)')
  if not 0 < config.opt.plateau_factor <= 1:
    raise UserError(
      f'opt.plateau_factor {config.opt.plateau_factor} is not in (0, 1]'
    )
  if not 0 < config.sample.top_p <= 1:
    raise UserError(f'sample.top_p {config.sample.top_p} is not in (0, 1]')
  devices.mesh_axes(config.parallel)
  for key, least in (('join_s', 1), ('heartbeat_s', 5)):
    if config.parallel.get(key, least) < least:
      raise UserError(
        f'parallel.{key} {config.parallel[key]} must be at least {least}'
      )
  check_data(config.data)
  schedules.from_config(config)
  optimizer.create(config)
  lora.check(config)
  # JAX has not started yet.
  cfg = GPTConfig.from_config(config.model, vocab_size=2, backend='cpu')
  if cfg.param_dtype != 'float32' and not lora.rank(config):
    raise UserError(
      f'model.param_dtype={cfg.param_dtype} is for weights that stay as they '
      'are: training all of them needs --config.model.param_dtype=float32, '
      'adapters beside them --init_from=RUN and --config.opt.lora_rank=8'
    )


def check_data(data_config: Any) -> None:
  """Raises UserError for keys of config.data that do not go together."""
  format, loss_on = data_config.format, data_config.loss_on
  text_choice.check_format(format)
  if loss_on not in LOSSES:
    raise UserError(
      f'data.loss_on {loss_on!r} is not known; allowed: {", ".join(LOSSES)}'
    )
  if loss_on == 'assistant' and format != 'chat':
    raise UserError(
      f'data.loss_on=assistant needs data.format=chat, here it is {format}: '
      'set data.loss_on=all'
    )
  order = text_choice.order(data_config)
  if order not in ORDERS:
    raise UserError(
      f'data.order {order!r} is not known; allowed: {", ".join(ORDERS)}'
    )
  if order != 'random' and data_config.document_aware:
    raise UserError(
      f'data.order={order} cuts the text into windows, which '
      'data.document_aware does by documents: leave one of them out'
    )
  ignored = {
    'order': format != 'text' and order != 'random',
    'chat_template': format != 'chat' and asked_template(data_config),
    'skip_long': format == 'text' and data_config.skip_long,
    'packing': format == 'text' and data_config.packing,
    'document_aware': format != 'text' and data_config.document_aware,
    'document_separator': format != 'text'
    and data_config.document_separator != 'none',
  }
  if (
    format == 'text'
    and data_config.document_aware
    and data_config.document_separator == 'none'
    and not text_choice.text_field(data_config)
  ):
    raise UserError(
      'data.document_aware needs documents: --config.data.document_separator '
      "says what ends one (blank_line, or a mark such as '<|eos|>'); the "
      'records of --config.data.text_field are documents, too'
    )
  for key, given in ignored.items():
    if given:
      raise UserError(
        f'data.{key}={data_config[key]} means nothing with data.format='
        f'{format}: leave it out'
      )


def _value(config: Any, key: str) -> Any:
  for name in key.split('.'):
    config = config[name]
  return config
