"""Models of other programs: what is WHAT, and who reads it.

WHAT is a Hugging Face directory (stock, ours or RandyGPT's), a microgpt
directory, a GGUF file, or hf://owner/name[@revision].
"""

import os
import pathlib
from typing import Any

import jax

from gpt.errors import UserError, quoted
from gpt.fields import Fields, read_fields
from gpt.files import open_file
from gpt.formats import hub, huggingface, microgpt, randygpt_hf
from gpt.formats.directories import ForeignModel, Path
from gpt.formats.gguf import read_gguf
from gpt.formats.tensor_files import INDEX, PICKLED, SINGLE
from gpt.formats.tensors import PARAM_DTYPES
from gpt.tokenizers.chat_format import is_chat_tokenizer
from gpt.tokenizers.template_files import template_in

GGUF, HF, MICROGPT, RANDYGPT = 'gguf', 'hf', 'microgpt', 'randygpt'
KINDS = (HF, MICROGPT, RANDYGPT, GGUF)
ADAPTERS = 'adapter_config.json'
GENERATION = 'generation_config.json'
ALLOWED = (
  'a Hugging Face directory (config.json, model.safetensors, tokenizer.json), '
  f'a microgpt directory ({microgpt.META}, {microgpt.WEIGHTS}, '
  f'{microgpt.TOKENIZER}), a .gguf file, or hf://owner/name'
)


def local_path(what: Path) -> pathlib.Path:
  """The local path of a model; hf://... is downloaded first."""
  if hub.is_reference(os.fspath(what)):
    return hub.download(os.fspath(what))
  return pathlib.Path(what)


def detect(what: Path) -> str:
  """The kind of a model, one of KINDS.

  Args:
    what: a path on this machine.

  Raises:
    UserError: there is nothing, or no model that can be read.
  """
  path = pathlib.Path(what)
  if not path.exists():
    raise UserError(f'there is no {path}; needed: {ALLOWED}')
  if not path.is_dir():
    return _kind_of_file(path)
  if (path / 'checkpoints').is_dir() and (path / 'tokenizer').is_dir():
    raise UserError(
      f'{path} is a run already: name it as --workdir of other commands, or as '
      '--init_from of launch.train'
    )
  if (path / microgpt.META).is_file():
    return MICROGPT
  has_weights = any((path / name).exists() for name in (SINGLE, INDEX))
  described = (path / huggingface.CONFIG).is_file()
  pickled = any((path / name).exists() for name in PICKLED)
  if not has_weights and (pickled or not described):
    _explain_no_weights(path)
  if not described:
    raise UserError(
      f'{path} has no {huggingface.CONFIG}, which describes the model; needed: '
      f'{ALLOWED}'
    )
  config = read_fields(path / huggingface.CONFIG)
  is_randygpt = config.values.get('model_type') == randygpt_hf.MODEL_TYPE
  return RANDYGPT if is_randygpt else HF


def _kind_of_file(path: pathlib.Path) -> str:
  with open_file(path) as file:
    start = file.read(4)
  if start == b'GGUF' or path.suffix == '.gguf':
    return GGUF
  if start == b'RGPT':
    raise UserError(
      f'{path} is a RandyGPT checkpoint: `python -m launch.import_rgpt` takes '
      'it, with its preset and vocabulary'
    )
  if path.suffix == '.safetensors':
    raise UserError(
      f'{path} holds weights alone: give the directory that has its '
      f'{huggingface.CONFIG} and tokenizer too'
    )
  raise UserError(f'{path} is no model that can be read; needed: {ALLOWED}')


def _explain_no_weights(path: pathlib.Path) -> None:
  """Raises UserError for what a directory has instead of weights."""
  if any((path / name).exists() for name in PICKLED):
    raise UserError(
      f'{path} has its weights in {PICKLED[0]}, a pickle, which is never '
      'opened because it can run code: convert it first (transformers: '
      'model.save_pretrained(DIRECTORY) writes safetensors)'
    )
  if (path / ADAPTERS).is_file():
    base = read_fields(path / ADAPTERS).values.get('base_model_name_or_path')
    raise UserError(
      f'{path} holds adapters (LoRA) of {quoted(base)} and no model: '
      'merge them into their base first (peft: merge_and_unload), and import '
      'the result'
    )
  if files := sorted(p.name for p in path.glob('*.gguf')):
    raise UserError(
      f'{path} is a directory of GGUF files: name one, {path / files[0]}'
    )
  raise UserError(f'{path} holds no model that can be read; needed: {ALLOWED}')


def read_foreign(
  what: Path, dtype: str = 'float32', kind: str = 'auto'
) -> ForeignModel:
  """Reads a model of another program.

  Args:
    what: see the module; hf://... is downloaded.
    dtype: of the parameters, 'float32' or 'bfloat16'.
    kind: one of KINDS, or 'auto'.

  Raises:
    UserError: there is nothing, no model that can be read, or a damaged one.
  """
  path = local_path(what)
  kind = detect(path) if kind == 'auto' else kind
  match kind:
    case 'gguf':
      model = read_gguf(path, dtype)
    case 'microgpt':
      model = _stored(microgpt.read_microgpt(path), dtype)
    case 'randygpt':
      config = read_fields(path / huggingface.CONFIG)
      model = _stored(randygpt_hf.read_randygpt(config, path), dtype)
    case 'hf':
      model = huggingface.read_hf(path, dtype)
      model.sampling = _sampling(path)
      # A chat model of ours has a template that says what its tokens say.
      if not is_chat_tokenizer(model.tokenizer):
        model.chat_template = template_in(path)
    case _:
      raise UserError(
        f'unknown kind of model {kind!r}; allowed: {", ".join(KINDS)}'
      )
  model.kind = kind
  return model


def _stored(model: ForeignModel, dtype: str) -> ForeignModel:
  """Rounds the parameters of a model that was read as float32."""
  if dtype != 'float32':
    wanted = PARAM_DTYPES[dtype]
    model.params = jax.tree.map(lambda x: x.astype(wanted), model.params)
  return model


def _sampling(path: pathlib.Path) -> dict[str, Any]:
  """Keys of config.sample from a directory's generation_config.json."""
  file = path / GENERATION
  if not file.is_file():
    return {}
  fields: Fields = read_fields(file)
  found = {}
  if fields.flag('do_sample', None) is False:
    return {}
  if 'temperature' in fields:
    found['temperature'] = fields.number('temperature', 0, 100)
  if 'top_p' in fields:
    found['top_p'] = fields.number('top_p', 1e-6, 1)
  if 'top_k' in fields:
    found['top_k'] = fields.integer('top_k', 0, 1 << 22)
  return found
