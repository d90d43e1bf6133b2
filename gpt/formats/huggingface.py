"""Directories for Hugging Face's `transformers`, written and read.

config.json, model.safetensors    the model; config.json['rgpt'] is the run
modeling_rgpt.py, configuration_rgpt.py    its code (trust_remote_code), only
                                  where no class of transformers holds it
generation_config.json            defaults of generate()
tokenizer.json, tokenizer_config.json      where they can be expressed
rgpt_tokenizer/                   our tokenizer, for reading back
README.md                         the model card
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from gpt.errors import UserError, explained_writes, naming
from gpt.fields import Fields
from gpt.files import read_json, write_atomic
from gpt.formats import architectures, tokenizer_json
from gpt.formats.architectures import Family
from gpt.formats.directories import (
  ForeignModel,
  Path,
  check_vocab_size,
  make_directory,
)
from gpt.formats.hf_names import OPTIONS, hf_tensor_name, tensor_name
from gpt.formats.markdown import escape
from gpt.formats.tensor_files import TensorFiles, open_model
from gpt.formats.tensors import (
  PARAM_DTYPES,
  from_tensors,
  to_tensors,
  write_tensors,
)
from gpt.model import GPTConfig
from gpt.model.config import option_names, unrepresentable
from gpt.model.options import FUNCTION, SHAPE
from gpt.model.params import Params
from gpt.tokenizers import Tokenizer, load_tokenizer
from gpt.tokenizers.base import BOS, EOS
from gpt.tokenizers.chat_format import (
  ASSISTANT,
  END_TURN,
  SYSTEM,
  USER,
  has_chat_tokens,
  is_chat_tokenizer,
  stop_ids,
)
from gpt.tokenizers.hf_directory import read_tokenizer

CODE = ('configuration_rgpt.py', 'modeling_rgpt.py')
WEIGHTS, CONFIG, CARD = 'model.safetensors', 'config.json', 'README.md'
OUR_TOKENIZER = 'rgpt_tokenizer'
REQUIRED = ('arch', 'n_embd', 'n_head', 'n_layer', 'block_size')
AUTO, OWN = 'auto', 'own'
TORCH_DTYPES = {'f32': 'float32', 'f16': 'float16', 'bf16': 'bfloat16'}


def choose_class(cfg: GPTConfig, wanted: str) -> tuple[Family | None, str]:
  """(the stock class that represents a model, or None for our own; a note).

  Args:
    wanted: 'auto' (a stock class wherever one holds the model), 'own', or a
      model_type of `architectures.FAMILIES`.

  Raises:
    UserError: the wanted class cannot represent the model.
  """
  if wanted == OWN:
    return None, 'note: written with its own code (trust_remote_code)'
  if wanted == AUTO:
    family, reasons = architectures.choose(cfg)
    if family is None:
      return None, (
        'note: written with its own code (trust_remote_code), because no class '
        f'of transformers holds this model; the nearest: {"; ".join(reasons)}'
      )
  else:
    family = architectures.FAMILIES[wanted]
    if reasons := architectures.misfits(family, cfg):
      raise UserError(
        f'{family.hf_class} cannot represent this model: {"; ".join(reasons)}'
      )
  return family, f'note: written as {family.hf_class}, which needs no own code'


def write_hf(
  directory: Path,
  cfg: GPTConfig,
  params: Params,
  tokenizer: Tokenizer,
  dtype: str,
  record: Mapping[str, Any],
  card: str,
  family: Family | None = None,
) -> list[str]:
  """Writes the directory; the weights come last.

  Args:
    dtype: a key of tensors.DTYPES.
    family: the stock class to write; None: our own, with its code.
    record: what config.json keeps of the run: 'config', 'step', 'best_loss'.
    card: the model card, in which '{tokenizer_note}' is filled in.

  Returns:
    Notes for the user.

  Raises:
    UserError: a model that the code in hf_code cannot represent; a place that
      cannot be written to.
  """
  if reasons := unrepresentable(cfg, 'hf'):
    raise UserError(
      f'this model cannot be written for transformers: {"; ".join(reasons)}'
    )
  if family is None:
    tensors = {hf_tensor_name(k): x for k, x in to_tensors(params).items()}
    model = own_entries(cfg)
  else:
    cfg, params = architectures.conform(family, cfg, params)
    tensors = dict(architectures.to_hf_tensors(family, cfg, params))
    model = family.write_config(cfg)
  directory = make_directory(directory)
  files, notes = {}, []
  try:
    files['tokenizer.json'] = tokenizer_json.equivalent(tokenizer)
    files['tokenizer_config.json'] = _json(tokenizer_config(tokenizer, cfg))
    note = (
      '`tokenizer.json` gives the ids the model was trained on. Names of '
      'control tokens inside a text become control tokens, unless the '
      'tokenizer is loaded with `split_special_tokens=True`.'
    )
  except UserError as e:
    notes.append(f'note: no tokenizer.json was written: {e}')
    note = (
      f'There is no `tokenizer.json`: {escape(e)}. Use the one in '
      f'`{OUR_TOKENIZER}` with rgpt: '
      f"`gpt.tokenizers.load_tokenizer('{OUR_TOKENIZER}')`."
    )
  if family is None:
    assets = pathlib.Path(__file__).parent / 'hf_code'
    files |= {name: (assets / name).read_bytes() for name in CODE}
  files[CONFIG] = _json(model | _run_entries(tokenizer, dtype, record))
  files['generation_config.json'] = _json(generation_config(tokenizer, record))
  files[CARD] = card.replace('{tokenizer_note}', note).encode()
  with explained_writes(directory):
    tokenizer.save(directory / OUR_TOKENIZER)
    for name, data in files.items():
      write_atomic(directory / name, data)
  write_tensors(directory / WEIGHTS, tensors, dtype, {'format': 'pt'})
  return notes


def own_entries(cfg: GPTConfig) -> dict[str, Any]:
  """Entries of config.json about a model in our own code."""
  return {
    'model_type': 'rgpt',
    'architectures': ['RgptForCausalLM'],
    'auto_map': {
      'AutoConfig': 'configuration_rgpt.RgptConfig',
      'AutoModelForCausalLM': 'modeling_rgpt.RgptForCausalLM',
    },
    'vocab_size': cfg.vocab_size,
    **{OPTIONS.get(n, n): getattr(cfg, n) for n in option_names(format='hf')},
  }


def _run_entries(
  tokenizer: Tokenizer, dtype: str, record: Mapping[str, Any]
) -> dict[str, Any]:
  """Entries of config.json about anything but the model's function."""
  return {
    'torch_dtype': TORCH_DTYPES[dtype],
    'dtype': TORCH_DTYPES[dtype],  # As transformers 5 calls it.
    'bos_token_id': tokenizer.bos_id,
    'eos_token_id': tokenizer.eos_id,
    'pad_token_id': tokenizer.eos_id,
    'rgpt': dict(record),
  }


def generation_config(
  tokenizer: Tokenizer, record: Mapping[str, Any]
) -> dict[str, Any]:
  """The run's own sampling settings, and tokens that must not be sampled."""
  sample = record['config']['sample']
  ends = [tokenizer.eos_id]
  if is_chat_tokenizer(tokenizer):
    ends += sorted({*stop_ids(tokenizer)} - {*ends})
  greedy = sample['temperature'] <= 0
  sampling = (
    {}
    if greedy
    else {
      'temperature': sample['temperature'],
      'top_p': sample['top_p'],
      'top_k': sample['top_k'],
    }
  )
  return {
    'bos_token_id': tokenizer.bos_id,
    'eos_token_id': ends,
    'pad_token_id': tokenizer.eos_id,
    'suppress_tokens': sorted(set(tokenizer.unsampleable_ids) - set(ends)),
    'do_sample': not greedy,
    **sampling,
  }


def tokenizer_config(tokenizer: Tokenizer, cfg: GPTConfig) -> dict[str, Any]:
  """The content of tokenizer_config.json, with a template for chat models."""
  names = tokenizer_json.control_names(tokenizer)
  config = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'bos_token': names[BOS],
    'eos_token': names[EOS],
    'pad_token': names[EOS],
    'model_max_length': cfg.block_size,
    'model_input_names': ['input_ids', 'attention_mask'],
    'clean_up_tokenization_spaces': False,
  }
  if template := template_text(tokenizer, names):
    config['chat_template'] = template
  return config


def template_text(tokenizer: Tokenizer, names: Mapping[str, str]) -> str:
  """The Jinja chat template of a run, or '' if it cannot chat.

  Args:
    names: our name of each control token -> its text in the exported file.
  """
  if not tokenizer.chat_template:
    return chat_template(names) if has_chat_tokens(tokenizer) else ''
  # Tokens trained here are spelled as in microgpt: <im_end> for <|im_end|>.
  renamed = {a: b for a, b in names.items() if a != b and a not in (BOS, EOS)}
  text = tokenizer.chat_template
  for ours, theirs in renamed.items():
    text = text.replace(ours, theirs)
  return text


def chat_template(names: Mapping[str, str]) -> str:
  """A Jinja template that gives the ids of tokenizers.chat_format.build_prompt.

  Args:
    names: our name of each control token -> its text in tokenizer.json.
  """
  turn = '{{ %(open)s + m["content"] + "' + names[END_TURN] + '" }}'
  roles = {'user': f'"{names[USER]}"', 'assistant': f'"{names[ASSISTANT]}"'}
  if SYSTEM in names:
    roles['system'] = f'"{names[SYSTEM]}"'
    head, alone, turns = '', '', 'messages'
  else:
    # As in tokenizers.chat_format: without a <|system|> token the text opens
    # the first user turn, or is a user turn itself where none follows. An
    # empty text is left out.
    head = (
      '{% set system = "" %}{% set turns = messages %}'
      '{% if messages[0]["role"] == "system" %}{% set turns = messages[1:] %}'
      '{% if messages[0]["content"] %}'
      '{% set system = messages[0]["content"] + "\\n\\n" %}'
      '{% endif %}{% endif %}'
    )
    alone = (
      '{% if system and (not turns or turns[0]["role"] != "user") %}{{ "'
      + names[USER]
      + '" + system + "'
      + names[END_TURN]
      + '" }}{% endif %}'
    )
    roles['user'] += ' + (system if loop.first else "")'
    turns = 'turns'
  branches = ''.join(
    '{% '
    + ('if' if i == 0 else 'elif')
    + f' m["role"] == "{role}" %}}'
    + turn % {'open': opening}
    for i, (role, opening) in enumerate(roles.items())
  )
  return (
    head
    + '{{ "'
    + names[BOS]
    + '" }}'
    + alone
    + '{% for m in '
    + turns
    + ' if m["content"] or m["role"] != "system" %}'
    + branches
    + '{% endif %}{% endfor %}{% if add_generation_prompt %}{{ "'
    + names[ASSISTANT]
    + '" }}{% endif %}'
  )


def read_hf(directory: Path, dtype: str = 'float32') -> ForeignModel:
  """Reads a directory of a class we know, or one that `write_hf` wrote.

  Args:
    dtype: of the parameters, 'float32' or 'bfloat16'.

  Raises:
    UserError: missing or damaged files, or another kind of model.
  """
  directory = pathlib.Path(directory)
  config = read_json(directory / CONFIG)
  if isinstance(config.get('model'), dict) and 'model_type' not in config:
    raise UserError(
      f'{directory} is a run already: name it as --workdir of other commands'
    )
  where = str(directory / CONFIG)
  record = dict(Fields(config, where).mapping('rgpt', {}).values)
  names = [*option_names(SHAPE, FUNCTION), 'init_std', 'dropout']
  if config.get('model_type') == 'rgpt':
    cfg, params = _read_own(config, open_model(directory), directory, dtype)
  else:
    family, options = architectures.from_hf_config(config, where)
    with naming(where):
      cfg = GPTConfig(**options)
    params = architectures.from_hf_tensors(
      family,
      cfg,
      open_model(directory),
      str(directory),
      PARAM_DTYPES[dtype],
    )
    if trained := _model_of(record):
      cfg, params = architectures.simplify(cfg, params, trained)
      names.remove('dropout')  # Most classes have none; the record has it.
  tokenizer = _read_tokenizer(directory, record, cfg.vocab_size)
  check_vocab_size(tokenizer, cfg, directory)
  options = {name: getattr(cfg, name) for name in names}
  return ForeignModel(
    options, params, tokenizer, record, tokenizer.chat_template
  )


def _read_tokenizer(
  directory: pathlib.Path, record: Mapping[str, Any], vocab_size: int
) -> Tokenizer:
  """The tokenizer of the run that was exported, or another program's."""
  ours = directory / OUR_TOKENIZER
  if ours.is_dir():
    return load_tokenizer(ours)
  if record:  # Saved again by transformers: our own control tokens.
    try:
      return load_tokenizer(directory)
    except UserError:
      pass  # The run itself had another program's tokenizer.
  return read_tokenizer(directory, vocab_size)


def _read_own(
  config: Mapping[str, Any],
  files: TensorFiles,
  directory: pathlib.Path,
  dtype: str,
) -> tuple[GPTConfig, dict[str, Any]]:
  """A model in our own code: its config and parameters."""
  names = option_names(format='hf')
  try:
    # Exports older than an option have its default.
    given = {name: OPTIONS.get(name, name) for name in names}
    options = {
      name: config[theirs]
      for name, theirs in given.items()
      if theirs in config or name in REQUIRED
    }
    cfg = GPTConfig(vocab_size=config['vocab_size'], **options)
  except KeyError as e:
    raise UserError(f'{directory / CONFIG} lacks {e}') from e
  except TypeError as e:
    raise UserError(f'{directory / CONFIG} has a wrong value: {e}') from e
  except UserError as e:
    raise UserError(f'{directory / CONFIG}: {e}') from e
  tensors = {tensor_name(k): files.read(k) for k in files.shapes}
  params = from_tensors(tensors, cfg, directory / WEIGHTS, PARAM_DTYPES[dtype])
  return cfg, params


def _model_of(record: Mapping[str, Any]) -> dict[str, Any]:
  """`config.model` in the record of a run; {} without one."""
  config = record.get('config')
  model = config.get('model') if isinstance(config, dict) else None
  return model if isinstance(model, dict) else {}


def _json(value: Mapping[str, Any]) -> bytes:
  return (json.dumps(value, indent=2, ensure_ascii=False) + '\n').encode()
