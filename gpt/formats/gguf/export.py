"""A run as a GGUF file, with a Modelfile for Ollama beside it."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from gpt.errors import explained_writes
from gpt.files import replacing
from gpt.formats.directories import modelfile_path
from gpt.formats.gguf.modelfile import PLAIN, go_template, modelfile
from gpt.formats.gguf.reader import read_gguf
from gpt.formats.gguf.vocabulary import tokenizer_keys
from gpt.formats.gguf.writer import write_gguf
from gpt.formats.tensors import compare_logits, rounding_note
from gpt.model import GPTConfig
from gpt.runs.load import LoadedModel
from gpt.tokenizers import Tokenizer
from gpt.tokenizers.chat_format import is_chat_tokenizer, stop_ids


def export_gguf(
  path: str | os.PathLike[str],
  loaded: LoadedModel,
  dtype: str = 'f32',
  drop_softcap: bool = False,
) -> list[str]:
  """Writes the model file and the Modelfile, or neither.

  Args:
    dtype: a key of writer.TYPES.
    drop_softcap: whether model.logit_softcap may be left out.

  Returns:
    Notes for the user; what rounding and a missing soft cap change is measured.

  Raises:
    UserError: no architecture or tokenizer of llama.cpp is the model's; see
      `write_gguf`.
  """
  path = pathlib.Path(path)
  exact = loaded.cfg, loaded.params
  written = exact
  if drop_softcap and loaded.cfg.logit_softcap:
    plain = dataclasses.replace(loaded.cfg, logit_softcap=0.0)
    written = plain, loaded.params
  keys = tokenizer_keys(loaded.tokenizer)
  text, notes = modelfile_text(
    path.name,
    keys,
    loaded.tokenizer,
    loaded.cfg.block_size,
    loaded.config['sample'],
  )
  beside = modelfile_path(path)
  with explained_writes(beside), replacing(beside) as file:
    file.write(text.encode())
    file.flush()
    os.fsync(file.fileno())  # A full disk is noticed before the model is there.
    architecture = write_gguf(path, *written, keys, dtype, loaded.name)
  notes.insert(
    0,
    f'llama.cpp runs it as architecture {architecture}; for Ollama: '
    f'ollama create NAME -f {beside}',
  )
  if written is not exact:
    report = compare_logits(exact, written)
    notes.append(
      f'without the soft cap of {loaded.cfg.logit_softcap:g} the mean '
      f'divergence of the next token is {report["mean_kl"]:.2g} nats over '
      f'{report["positions"]:,} positions; the likeliest token is the same'
    )
  if dtype != 'f32':
    report = compare_logits(written, _read_back(path))
    notes.append(rounding_note({'dtype': dtype, **report}))
  return notes


def _read_back(path: pathlib.Path) -> tuple[GPTConfig, dict[str, Any]]:
  """The model that the file holds."""
  found = read_gguf(path)
  size = found.tokenizer.vocab_size
  return GPTConfig(vocab_size=size, **found.options), found.params


def modelfile_text(
  gguf: str,
  keys: Mapping[str, Any],
  tokenizer: Tokenizer,
  block_size: int,
  settings: Mapping[str, Any],
) -> tuple[str, list[str]]:
  """(text of the Modelfile, notes for the user).

  Args:
    gguf: name of the model file.
    keys: of tokenizer_keys(tokenizer).
    settings: `config.sample` of the run.
  """
  template, notes = _template(keys)
  tokens = keys['tokenizer.ggml.tokens']
  ends = stop_ids(tokenizer) if is_chat_tokenizer(tokenizer) else ()
  stops = [tokens[id] for id in dict.fromkeys(ends)]
  return modelfile(gguf, block_size, template, stops, settings), notes


def _template(keys: Mapping[str, Any]) -> tuple[str | None, list[str]]:
  """(Go template for the Modelfile, notes)."""
  source = keys.get('tokenizer.chat_template')
  if not source:
    return PLAIN, []
  tokens = keys['tokenizer.ggml.tokens']
  names = {
    f'{which}_token': tokens[keys[f'tokenizer.ggml.{which}_token_id']]
    for which in ('bos', 'eos')
  }
  found = _go(source, names, keys['tokenizer.ggml.add_bos_token'])
  if found is not None:
    return found, []
  return None, [
    'note: the chat template has no counterpart in Ollama: the Modelfile has '
    'no TEMPLATE, and Ollama chooses one by the template in the GGUF file'
  ]


def _go(source: str, names: Mapping[str, str], adds_bos: bool) -> str | None:
  try:
    from gpt.tokenizers import jinja_sandbox
  except ImportError:
    return None
  compiled = jinja_sandbox.compile_template(source, lambda text: text)

  def render(messages: Sequence[Mapping[str, str]]) -> str:
    variables = {
      **names,
      'messages': [dict(message) for message in messages],
      'add_generation_prompt': True,
      'tools': None,
      'documents': None,
    }
    text = jinja_sandbox.render(compiled, variables)
    # llama.cpp puts BOS first itself.
    return text.removeprefix(names['bos_token']) if adds_bos else text

  return go_template(render)
