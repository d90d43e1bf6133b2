"""Exports a run for other programs, and imports their models as new runs."""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from gpt import staging
from gpt.data.sources import imported
from gpt.errors import UserError, explained_writes
from gpt.fields import Fields
from gpt.formats import huggingface, microgpt, model_card, peft
from gpt.formats.directories import LAYOUTS, Path, check_output
from gpt.formats.gguf.export import export_gguf
from gpt.formats.randygpt_run import export_rgpt, write_merged
from gpt.formats.tensors import (
  rounding_note,
  rounding_report,
  write_model_file,
)
from gpt.model import GPTConfig
from gpt.model.config import option_names, unrepresentable
from gpt.model.options import FORMATS, RUNTIME
from gpt.runs import base, create
from gpt.runs.config_file import flatten
from gpt.runs.info import finite
from gpt.runs.load import load_model
from gpt.tokenizers.chat_format import is_chat_tokenizer
from gpt.training import optimizer
from gpt.training.state import state_from_params

# microgpt's own hyperparameters, for a run that continues from its weights.
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


def export(
  workdir: Path,
  which: str,
  format: str,
  output: Path,
  dtype: str = 'f32',
  overwrite: bool = False,
  base_at: str = '',
  hf_class: str = huggingface.AUTO,
  drop_softcap: bool = False,
) -> tuple[str, int, list[str]]:
  """Writes a run's best or latest weights for another program.

  Args:
    which: 'best' or 'latest', the preferred checkpoint.
    format: 'rgpt', 'safetensors' or 'gguf' (output is a file), 'microgpt', 'hf'
      or 'peft' (a directory).
    dtype: 'f32', 'f16' or 'bf16', of gguf also 'q8_0'; rgpt has float32 alone.
    overwrite: whether an existing file or earlier export may be replaced.
    base_at: see load_model.
    hf_class: of --hf_class of launch.export, the class that 'hf' writes.
    drop_softcap: gguf leaves model.logit_softcap out instead of refusing.

  Returns:
    ('best' or 'latest': the checkpoint that was found, its completed steps,
    notes for the user).

  Raises:
    UserError: no such run; a model that the format cannot represent; a place
      that exists or cannot be written to.
  """
  check_output(output, format, overwrite)
  if format == 'rgpt' and not base.has_record(workdir):
    return export_rgpt(workdir, which, output)
  if format == 'peft':
    return peft.export_peft(workdir, which, output, dtype, hf_class)
  loaded = load_model(workdir, which, base_at)
  if format == 'gguf':
    notes = export_gguf(output, loaded, dtype, drop_softcap)
    return loaded.which, loaded.step, notes
  cfg, params = loaded.cfg, loaded.params
  reasons = unrepresentable(cfg, format) if format in FORMATS else []
  if reasons:
    raise UserError(
      f'this model cannot be written for {format}: {"; ".join(reasons)}'
    )
  if format == 'rgpt':
    notes = write_merged(output, loaded)
    return loaded.which, loaded.step, notes
  notes, rounding = [], None
  if dtype != 'f32':
    rounding = rounding_report(cfg, params, dtype)
    notes.append(rounding_note(rounding))
  record = {
    'config': loaded.config,
    'step': loaded.step,
    'best_loss': finite(loaded.meta.get('best_loss')),
    'data': loaded.data,
  }
  tokenizer = loaded.tokenizer
  if format == 'microgpt':
    chat = loaded.config['data']['format'] == 'chat'
    end = tokenizer.bos_id if chat else tokenizer.eos_id
    with _new_directory(output, format) as new:
      notes += microgpt.write_microgpt(new, cfg, params, tokenizer, dtype, end)
  elif format == 'hf':
    family, note = huggingface.choose_class(cfg, hf_class)
    card = model_card.card(
      loaded, workdir, rounding, family.hf_class if family else ''
    )
    with _new_directory(output, format) as new:
      notes += huggingface.write_hf(
        new, cfg, params, tokenizer, dtype, record, card, family
      )
    notes.append(note)
  else:
    write_model_file(output, cfg, params, dtype, record)
  return loaded.which, loaded.step, notes


@contextlib.contextmanager
def _new_directory(output: Path, format: str) -> Iterator[pathlib.Path]:
  """A directory that replaces an earlier export once it is complete."""
  new = None
  try:
    with (
      explained_writes(output),
      staging.directory(output, LAYOUTS[format].files) as new,
    ):
      yield new
  except UserError as e:
    raise UserError(str(e).replace(str(new), str(output))) from e


def detect(directory: Path) -> str:
  """'microgpt' or 'hf', from the files of a directory."""
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    raise UserError(f'no such directory: {directory}')
  for format, layout in LAYOUTS.items():
    if (directory / layout.mark).is_file():
      return format
  raise UserError(
    f'{directory} is neither a microgpt directory ({microgpt.META}, '
    f'{microgpt.WEIGHTS}, {microgpt.TOKENIZER}) nor one that launch.export '
    f'--format=hf wrote ({huggingface.CONFIG}, {huggingface.WEIGHTS})'
  )


def import_directory(
  directory: Path,
  format: str,
  config: Any,
  workdir: Path,
  overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Makes a new run from a model directory; it can be trained further.

  The optimizer starts afresh. A microgpt directory does not record how long it
  was trained: its run is at step 0, with microgpt's hyperparameters.

  Args:
    format: 'microgpt', 'hf' or 'auto'.
    config: ConfigDict of configs/default.py; filled in and saved.
    overrides: {'data.format': 'text', ...}, which win over the model's own
      record, except for the model's shape and function.

  Returns:
    'format', 'step', 'parameters', 'tokenizer' (kind), 'chat' (bool), 'cfg'
    (the GPTConfig).

  Raises:
    UserError: unusable files, or a workdir in use.
  """
  if format == 'auto':
    format = detect(directory)
  workdir, overrides = pathlib.Path(workdir), dict(overrides or {})
  create.check_free(workdir)
  read = {'microgpt': microgpt.read_microgpt, 'hf': huggingface.read_hf}
  foreign = read[format](directory)
  record, tokenizer = foreign.record, foreign.tokenizer
  chat = is_chat_tokenizer(tokenizer)
  if format == 'microgpt':
    config.update_from_flattened_dict(MICROGPT_TRAINING)
    config.data.format = 'chat' if chat else 'lines'
  else:
    saved = Fields(record, f'{directory}: rgpt')
    _take_over(config, saved.mapping('config', {}).values)
  config.update_from_flattened_dict(overrides)
  cfg = GPTConfig.from_config(config.model, tokenizer.vocab_size)
  free = {
    name for name in option_names(RUNTIME) if f'model.{name}' in overrides
  }
  for name, value in foreign.options.items():
    # An equal value may stay written as 'auto'.
    if name not in free and getattr(cfg, name) != value:
      config.model[name] = value
  config.data.tokenizer = tokenizer.kind
  config.data.tokenizer_path = ''
  state: Any = state_from_params(
    foreign.params, optimizer.create(config), ema=config.opt.ema_decay > 0
  )
  step = create.checked_step(record.get('step'), directory)
  state = jax.device_get(state.replace(step=np.asarray(step, np.int32)))
  data = record.get('data') or {}
  if isinstance(data, dict) and data.get('text_sha256'):
    keys = ('kind', 'description', 'text_sha256')
    data = {key: str(data.get(key, '')) for key in keys}
  else:
    data = None
  create.create(
    workdir,
    config,
    tokenizer,
    state,
    record.get('best_loss'),
    source=directory,
    data=data,
  )
  return {
    'format': format,
    'step': step,
    'tokenizer': tokenizer.kind,
    'chat': chat,
    'parameters': sum(x.size for x in jax.tree.leaves(foreign.params)),
    'cfg': GPTConfig.from_config(config.model, tokenizer.vocab_size),
  }


def _take_over(config: Any, saved: Mapping[str, Any]) -> None:
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
