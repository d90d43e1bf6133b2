"""A directory that Hugging Face's `transformers` loads, and the way back.

config.json, model.safetensors    the model; config.json['rgpt'] is the run
modeling_rgpt.py, configuration_rgpt.py    its code (trust_remote_code)
generation_config.json            what generate() starts from
tokenizer.json, tokenizer_config.json      where they can be expressed
rgpt_tokenizer/                   our tokenizer, for the way back
README.md                         the model card
"""

import json
import pathlib
import shutil

from gpt.errors import UserError, explained_writes
from gpt.files import write_atomic
from gpt.formats import safetensors_file, tokenizer_json
from gpt.formats.interop import (
  Foreign,
  check_vocab_size,
  from_tensors,
  make_directory,
  read_json,
  to_tensors,
)
from gpt.model import GPTConfig
from gpt.model.config import option_names, unrepresentable
from gpt.tokenizers import load_tokenizer
from gpt.tokenizers.base import BOS, EOS
from gpt.tokenizers.chat_format import (
  ASSISTANT,
  END_TURN,
  SYSTEM,
  USER,
  is_chat_tokenizer,
)

CODE = ('configuration_rgpt.py', 'modeling_rgpt.py')
WEIGHTS, CONFIG, CARD = 'model.safetensors', 'config.json', 'README.md'
TOKENIZER_FILES = ('tokenizer.json', 'tokenizer_config.json')
OUR_TOKENIZER = 'rgpt_tokenizer'
FILES = (
  *CODE,
  WEIGHTS,
  CONFIG,
  CARD,
  *TOKENIZER_FILES,
  OUR_TOKENIZER,
  'generation_config.json',
)
REQUIRED = ('arch', 'n_embd', 'n_head', 'n_layer', 'block_size')
TORCH_DTYPES = {'f32': 'float32', 'f16': 'float16', 'bf16': 'bfloat16'}


def their_name(name: str) -> str:
  """'layer0.attn_wq' -> 'layers.0.attn_wq.weight', 'wte' -> 'wte.weight'."""
  layer, _, leaf = name.partition('.')
  if leaf:
    return f'layers.{layer.removeprefix("layer")}.{leaf}.weight'
  return f'{name}.weight'


def our_name(name: str) -> str:
  """The inverse of `their_name`; other names stay as they are."""
  name = name.removesuffix('.weight')
  if name.startswith('layers.'):
    return 'layer' + name.removeprefix('layers.')
  return name


def write_hf(
  directory, cfg: GPTConfig, params, tokenizer, dtype: str, run: dict, card: str
) -> list[str]:
  """Writes the directory; the weights come last.

  Args:
    run: what config.json keeps of the run ('config', 'step', 'best_loss').
    card: the model card, where '{tokenizer_note}' gets what there is to say.

  Returns:
    Lines worth telling.
  """
  if reasons := unrepresentable(cfg, 'hf'):
    raise UserError(
      f'this model cannot be written for transformers: {"; ".join(reasons)}'
    )
  directory = make_directory(directory, FILES, CONFIG, {'model_type': 'rgpt'})
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
      f'There is no `tokenizer.json`: {e}. Use the one in `{OUR_TOKENIZER}` '
      f"with rgpt: `gpt.tokenizers.load_tokenizer('{OUR_TOKENIZER}')`."
    )
  assets = pathlib.Path(__file__).parent / 'hf_code'
  files |= {name: (assets / name).read_bytes() for name in CODE}
  files[CONFIG] = _json(model_config(cfg, tokenizer, dtype, run))
  files['generation_config.json'] = _json(generation_config(tokenizer, run))
  files[CARD] = card.replace('{tokenizer_note}', note).encode()
  with explained_writes(directory):
    for name in TOKENIZER_FILES:
      (directory / name).unlink(missing_ok=True)
    shutil.rmtree(directory / OUR_TOKENIZER, ignore_errors=True)
    tokenizer.save(directory / OUR_TOKENIZER)
    for name, data in files.items():
      write_atomic(directory / name, data)
  tensors = {their_name(k): x for k, x in to_tensors(params).items()}
  safetensors_file.write(directory / WEIGHTS, tensors, dtype, {'format': 'pt'})
  return notes


def model_config(cfg: GPTConfig, tokenizer, dtype: str, run: dict) -> dict:
  """config.json."""
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
    'rgpt': run,
  }


def generation_config(tokenizer, run: dict) -> dict:
  """Sampling as the run samples, and what must never be sampled."""
  sample = run['config']['sample']
  ends = [tokenizer.eos_id]
  if is_chat_tokenizer(tokenizer):
    ends.append(tokenizer.special_tokens[END_TURN])
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


def tokenizer_config(tokenizer, cfg: GPTConfig) -> dict:
  """tokenizer_config.json, with a chat template where the model can chat."""
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
  if is_chat_tokenizer(tokenizer):
    config['chat_template'] = chat_template(names)
  return config


def chat_template(names: dict) -> str:
  """The Jinja template with the ids of gpt.tokenizers.chat_format.build_prompt.

  Args:
    names: our names of the control tokens -> theirs.
  """
  turn = '{{ %(open)s + m["content"] + "' + names[END_TURN] + '" }}'
  roles = {'user': f'"{names[USER]}"', 'assistant': f'"{names[ASSISTANT]}"'}
  if SYSTEM in names:
    roles['system'] = f'"{names[SYSTEM]}"'
    head, alone, turns = '', '', 'messages'
  else:
    # As in tokenizers.chat_format: without a token of its own it opens the
    # first user turn, or is one where none follows; an empty one is none.
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


def read_hf(directory) -> Foreign:
  """Reads a directory that `write_hf` (or transformers, from it) has written.

  Raises:
    UserError: files that are missing, damaged or of another model.
  """
  directory = pathlib.Path(directory)
  config = read_json(directory / CONFIG)
  if isinstance(config.get('model'), dict) and 'model_type' not in config:
    raise UserError(
      f'{directory} is a run already: name it as --workdir of other commands'
    )
  if config.get('model_type') != 'rgpt':
    raise UserError(
      f'{directory} holds a model of type {config.get("model_type")!r}: only '
      'directories that launch.export --format=hf wrote can be read'
    )
  try:
    # Exports older than an option have its default.
    names = [name for name in option_names(format='hf') if name in config]
    shape = {name: config[name] for name in {*REQUIRED, *names}}
    cfg = GPTConfig(vocab_size=config['vocab_size'], **shape)
    shape = {name: getattr(cfg, name) for name in option_names(format='hf')}
  except (KeyError, TypeError) as e:
    raise UserError(f'{directory / CONFIG} lacks {e}') from e
  tensors, _ = safetensors_file.read(directory / WEIGHTS)
  params = from_tensors(
    {our_name(k): x for k, x in tensors.items()}, cfg, directory / WEIGHTS
  )
  ours = directory / OUR_TOKENIZER
  tokenizer = load_tokenizer(ours if ours.is_dir() else directory)
  check_vocab_size(tokenizer, cfg, directory)
  return Foreign(shape, params, tokenizer, config.get('rgpt') or {})


def _json(value: dict) -> bytes:
  return (json.dumps(value, indent=2, ensure_ascii=False) + '\n').encode()
