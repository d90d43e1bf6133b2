"""Exports a run for other programs, and imports their models as new runs."""

import contextlib
import copy
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from gpt import staging
from gpt.errors import UserError, explained_writes, naming
from gpt.fields import Fields
from gpt.formats import (
  foreign,
  huggingface,
  import_config,
  microgpt,
  model_card,
  peft,
)
from gpt.formats.directories import LAYOUTS, Path, check_output
from gpt.formats.gguf.export import export_gguf
from gpt.formats.randygpt_run import export_rgpt, write_merged
from gpt.formats.tensors import (
  rounding_note,
  rounding_report,
  write_model_file,
)
from gpt.model.config import unrepresentable
from gpt.model.options import FORMATS
from gpt.runs import base, create
from gpt.runs.info import finite
from gpt.runs.load import load_model
from gpt.tokenizers.chat_format import is_chat_tokenizer
from gpt.training.state import untrained_state


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
    with _new_directory(output, format) as new:
      return peft.export_peft(workdir, which, new, dtype, hf_class)
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


def import_directory(
  directory: Path,
  format: str,
  config: Any,
  workdir: Path,
  overrides: Mapping[str, Any] | None = None,
  *,
  dtype: str = 'float32',
  block_size: int = 0,
  context: int = import_config.CONTEXT,
) -> dict[str, Any]:
  """Makes a new run from a model of another program; it can be trained.

  Its optimizer starts afresh. Only our own exports record how long they were
  trained: other runs are at step 0, with hyperparameters for fine-tuning.

  Args:
    directory: what `foreign.read_foreign` takes.
    format: one of foreign.KINDS, or 'auto'.
    config: ConfigDict of configs/default.py; filled in and saved.
    overrides: {'data.format': 'text', ...}, which win over the model's own
      record, except for the model's shape and function.
    dtype: of the weights in the run, 'float32' or 'bfloat16'.
    block_size: context of the run; 0: that of the model.
    context: the longest that a run gets without `block_size`.

  Returns:
    'format', 'step', 'parameters', 'tokenizer' (kind), 'chat' (bool), 'cfg'
    (the GPTConfig), 'notes' (for the user).

  Raises:
    UserError: unusable files, or a workdir in use. Nothing is left of it.
  """
  workdir, overrides = pathlib.Path(workdir), dict(overrides or {})
  create.check_free(workdir)
  model = foreign.read_foreign(directory, dtype, format)
  note = import_config.set_context(model, block_size, context)
  chat = bool(model.chat_template) or is_chat_tokenizer(model.tokenizer)
  defaults = dict(import_config.FINE_TUNING)
  if model.kind == foreign.MICROGPT:
    defaults = dict(import_config.MICROGPT)
    defaults['data.format'] = 'chat' if chat else 'lines'
  elif chat:
    defaults |= {'data.format': 'chat', 'data.loss_on': 'assistant'}
  defaults |= {f'sample.{name}': x for name, x in model.sampling.items()}
  record = Fields(model.record, f'{directory}: rgpt')
  if 'config' in record:  # The run's own settings.
    defaults = {}
  defaults['model.param_dtype'] = dtype
  with naming(directory):
    cfg = import_config.fill_in(config, model, defaults, overrides)
  step = create.checked_step(record.values.get('step'), directory)
  tokenizer = copy.copy(model.tokenizer)
  tokenizer.chat_template = model.chat_template or tokenizer.chat_template
  state = untrained_state(step, model.params)
  data = record.mapping('data', {}).values
  if data.get('text_sha256'):
    keys = ('kind', 'description', 'text_sha256')
    data = {key: str(data.get(key, '')) for key in keys}
  else:
    data = None
  create.create(
    workdir,
    config,
    tokenizer,
    state,
    record.values.get('best_loss'),
    source=directory,
    data=data,
  )
  return {
    'format': model.kind,
    'step': step,
    'tokenizer': model.tokenizer.kind,
    'chat': chat,
    'parameters': sum(x.size for x in jax.tree.leaves(model.params)),
    'cfg': cfg,
    'notes': [note] if note else [],
  }
