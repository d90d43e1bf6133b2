"""Directories for Hugging Face's `transformers`, written and read back.

config.json, model.safetensors    the model; config.json['rgpt'] is the run
modeling_rgpt.py, configuration_rgpt.py    its code (trust_remote_code)
generation_config.json            defaults of generate()
tokenizer.json, tokenizer_config.json      where they can be expressed
rgpt_tokenizer/                   our tokenizer, for reading back
README.md                         the model card
"""

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from gpt.errors import UserError, explained_writes, quoted
from gpt.files import read_json, write_atomic
from gpt.formats import tokenizer_json
from gpt.formats.directories import (
  ForeignModel,
  Path,
  check_vocab_size,
  make_directory,
)
from gpt.formats.markdown import escape
from gpt.formats.tensors import (
  from_tensors,
  read_tensors,
  to_tensors,
  write_tensors,
)
from gpt.model import GPTConfig
from gpt.model.config import option_names, unrepresentable
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

CODE = ('configuration_rgpt.py', 'modeling_rgpt.py')
WEIGHTS, CONFIG, CARD = 'model.safetensors', 'config.json', 'README.md'
TOKENIZER_FILES = ('tokenizer.json', 'tokenizer_config.json')
OUR_TOKENIZER = 'rgpt_tokenizer'
REQUIRED = ('arch', 'n_embd', 'n_head', 'n_layer', 'block_size')
TORCH_DTYPES = {'f32': 'float32', 'f16': 'float16', 'bf16': 'bfloat16'}


def hf_tensor_name(name: str) -> str:
  """'layer0.attn_wq' -> 'layers.0.attn_wq.weight', 'wte' -> 'wte.weight'."""
  layer, _, leaf = name.partition('.')
  if leaf:
    return f'layers.{layer.removeprefix("layer")}.{leaf}.weight'
  return f'{name}.weight'


def tensor_name(hf_name: str) -> str:
  """The inverse of `hf_tensor_name`; other names stay as they are."""
  name = hf_name.removesuffix('.weight')
  if name.startswith('layers.'):
    return 'layer' + name.removeprefix('layers.')
  return name


def write_hf(
  directory: Path,
  cfg: GPTConfig,
  params: Params,
  tokenizer: Tokenizer,
  dtype: str,
  record: Mapping[str, Any],
  card: str,
) -> list[str]:
  """Writes the directory; the weights come last.

  Args:
    dtype: a key of tensors.DTYPES.
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
  assets = pathlib.Path(__file__).parent / 'hf_code'
  files |= {name: (assets / name).read_bytes() for name in CODE}
  files[CONFIG] = _json(model_config(cfg, tokenizer, dtype, record))
  files['generation_config.json'] = _json(generation_config(tokenizer, record))
  files[CARD] = card.replace('{tokenizer_note}', note).encode()
  with explained_writes(directory):
    for name in TOKENIZER_FILES:
      (directory / name).unlink(missing_ok=True)
    shutil.rmtree(directory / OUR_TOKENIZER, ignore_errors=True)
    tokenizer.save(directory / OUR_TOKENIZER)
    for name, data in files.items():
      write_atomic(directory / name, data)
  tensors = {hf_tensor_name(k): x for k, x in to_tensors(params).items()}
  write_tensors(directory / WEIGHTS, tensors, dtype, {'format': 'pt'})
  return notes


def model_config(
  cfg: GPTConfig, tokenizer: Tokenizer, dtype: str, record: Mapping[str, Any]
) -> dict[str, Any]:
  """The content of config.json; arguments as of `write_hf`."""
  return {
    'model_type': 'rgpt',
    'architectures': ['RgptForCausalLM'],
    'auto_map': {
      'AutoConfig': 'configuration_rgpt.RgptConfig',
      'AutoModelForCausalLM': 'modeling_rgpt.RgptForCausalLM',
    },
    'vocab_size': cfg.vocab_size,
    **{name: getattr(cfg, name) for name in option_names(format='hf')},
    'torch_dtype': TORCH_DTYPES[dtype],
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


def read_hf(directory: Path) -> ForeignModel:
  """Reads a directory written by `write_hf`, or re-saved by transformers.

  Raises:
    UserError: missing or damaged files, or another kind of model.
  """
  directory = pathlib.Path(directory)
  config = read_json(directory / CONFIG)
  if isinstance(config.get('model'), dict) and 'model_type' not in config:
    raise UserError(
      f'{directory} is a run already: name it as --workdir of other commands'
    )
  if config.get('model_type') != 'rgpt':
    raise UserError(
      f'{directory} holds a model of type {quoted(config.get("model_type"))}: '
      'only directories that launch.export --format=hf wrote can be read'
    )
  names = option_names(format='hf')
  try:
    # Exports older than an option have its default.
    given = {*REQUIRED, *(name for name in names if name in config)}
    options = {name: config[name] for name in given}
    cfg = GPTConfig(vocab_size=config['vocab_size'], **options)
  except KeyError as e:
    raise UserError(f'{directory / CONFIG} lacks {e}') from e
  except TypeError as e:
    raise UserError(f'{directory / CONFIG} has a wrong value: {e}') from e
  tensors = read_tensors(directory / WEIGHTS)
  params = from_tensors(
    {tensor_name(k): x for k, x in tensors.items()}, cfg, directory / WEIGHTS
  )
  ours = directory / OUR_TOKENIZER
  tokenizer = load_tokenizer(ours if ours.is_dir() else directory)
  check_vocab_size(tokenizer, cfg, directory)
  options = {name: getattr(cfg, name) for name in names}
  return ForeignModel(options, params, tokenizer, config.get('rgpt') or {})


def _json(value: Mapping[str, Any]) -> bytes:
  return (json.dumps(value, indent=2, ensure_ascii=False) + '\n').encode()
