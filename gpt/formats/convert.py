"""A run becomes files for other programs, and their files become a run."""

import json
import pathlib

import jax
import numpy as np

from gpt.data import record as data_record
from gpt.errors import UserError, explained_writes
from gpt.formats import huggingface, interop, model_card
from gpt.model import GPTConfig
from gpt.model.config import RUNTIME, option_names
from gpt.runs import create
from gpt.runs import workdir as run
from gpt.runs.info import finite
from gpt.runs.load import load_model
from gpt.tokenizers.chat_format import is_chat_tokenizer
from gpt.training import optimizer
from gpt.training.state import from_params

FORMATS = ('microgpt', 'hf')
# microgpt's own training, for a run that goes on from its weights.
MICROGPT_TRAINING = {
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


def export(workdir, which: str, format: str, output, dtype: str):
  """Writes a run's best or latest weights for another program.

  Args:
    format: 'safetensors' (output: a file), 'microgpt' or 'hf' (a directory).
    dtype: 'f32', 'f16' or 'bf16'.

  Returns:
    ('best' or 'latest': what was found, completed steps, lines worth telling).

  Raises:
    UserError: no such run; a model that the format has not; a place that
      cannot be written to.
  """
  if (pathlib.Path(output) / 'checkpoints').exists():
    raise UserError(f'{output} is a run; choose another --output')
  loaded = load_model(workdir, which)
  cfg, params = loaded.cfg, loaded.params
  notes, rounding = [], None
  if dtype != 'f32':
    rounding = interop.rounding_report(cfg, params, dtype) | {'dtype': dtype}
    notes.append(
      f'{dtype}: the largest change of a logit by rounding the weights is '
      f'{rounding["max_error"]:.3g} (logits up to {rounding["max_logit"]:.3g}),'
      f' over {rounding["positions"]:,} positions; the likeliest token is the '
      f'same at {100 * rounding["same_argmax"]:.1f} %'
    )
  record = {
    'config': loaded.config,
    'step': loaded.step,
    'best_loss': finite(loaded.meta.get('best_loss')),
    'data': loaded.data,
  }
  if format == 'microgpt':
    tokenizer, data = loaded.tokenizer, loaded.config['data']
    end = tokenizer.bos_id if data['format'] == 'chat' else tokenizer.eos_id
    notes += interop.write_microgpt(output, cfg, params, tokenizer, dtype, end)
  elif format == 'hf':
    card = model_card.card(loaded, workdir, rounding)
    notes += huggingface.write_hf(
      output, cfg, params, loaded.tokenizer, dtype, record, card
    )
  else:
    if pathlib.Path(output).is_dir():
      raise UserError(f'{output} is a directory; --output must name a file')
    interop.write_safetensors(output, cfg, params, dtype, record)
  return loaded.which, loaded.step, notes


def detect(directory) -> str:
  """'microgpt' or 'hf', by the files of a directory."""
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    raise UserError(f'no such directory: {directory}')
  if (directory / interop.META).is_file():
    return 'microgpt'
  if (directory / huggingface.CONFIG).is_file():
    return 'hf'
  raise UserError(
    f'{directory} is neither a microgpt directory ({interop.META}, '
    f'{interop.WEIGHTS}, {interop.TOKENIZER}) nor one that launch.export '
    f'--format=hf wrote ({huggingface.CONFIG}, {huggingface.WEIGHTS})'
  )


def import_directory(
  directory, format: str, config, workdir, overrides=None
) -> dict:
  """Makes a new run from a directory; training can go on from it.

  The optimizer starts afresh. A microgpt directory does not tell how far it
  was trained: its run is at step 0, with microgpt's hyperparameters.

  Args:
    format: one of FORMATS, or 'auto'.
    config: ConfigDict of configs/default.py; filled in and saved.
    overrides: {'data.format': 'text', ...}, which win (not over the model's
      shape).

  Returns:
    'format', 'step', 'parameters', 'tokenizer' (kind), 'chat' (bool).

  Raises:
    UserError: files that cannot be used, a workdir in use.
  """
  if format == 'auto':
    format = detect(directory)
  workdir = pathlib.Path(workdir)
  create.check_free(workdir)
  read = {'microgpt': interop.read_microgpt, 'hf': huggingface.read_hf}
  foreign = read[format](directory)
  record, tokenizer = foreign.extra, foreign.tokenizer
  chat = is_chat_tokenizer(tokenizer)
  if format == 'microgpt':
    config.update_from_flattened_dict(MICROGPT_TRAINING)
    config.data.format = 'chat' if chat else 'lines'
  else:
    take(config, record.get('config') or {})
  config.update_from_flattened_dict(overrides or {})
  cfg = GPTConfig.from_config(config.model, tokenizer.vocab_size)
  free = option_names(RUNTIME)
  for name, value in foreign.shape.items():
    if f'model.{name}' in (overrides or {}) and name in free:
      continue
    if getattr(cfg, name) != value:  # Else 'auto' may stay what it is.
      config.model[name] = value
  config.data.tokenizer = tokenizer.kind
  config.data.tokenizer_path = ''
  state = from_params(
    foreign.params, optimizer.create(config), ema=config.opt.ema_decay > 0
  )
  step = int(record.get('step') or 0)
  state = jax.device_get(state.replace(step=np.asarray(step, np.int32)))
  create.create(workdir, config, tokenizer, state, record.get('best_loss'))
  data = record.get('data') or {}
  if isinstance(data, dict) and data.get('text_sha256'):
    keys = ('kind', 'description', 'text_sha256')
    with explained_writes(workdir):
      data_record.write(workdir, *(str(data.get(k, '')) for k in keys))
  return {
    'format': format,
    'step': step,
    'tokenizer': tokenizer.kind,
    'chat': chat,
    'parameters': sum(x.size for x in jax.tree.leaves(foreign.params)),
    'cfg': GPTConfig.from_config(config.model, tokenizer.vocab_size),
  }


def take(config, saved: dict) -> None:
  """Takes over the keys of a saved config that exist and fit."""
  known = run.flatten(json.loads(json.dumps(config.to_dict())))
  for key, value in run.flatten(saved).items():
    if key in known and isinstance(value, type(known[key])):
      config.update_from_flattened_dict({key: value})
