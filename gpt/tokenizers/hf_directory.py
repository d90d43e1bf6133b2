"""The tokenizer of a model directory on Hugging Face's hub.

tokenizer.json (or SentencePiece's tokenizer.model) holds the tokens. Which of
them begin and end a text is written elsewhere: by name in tokenizer_config.json
and special_tokens_map.json, by id in generation_config.json and config.json.
"""

import os
import pathlib
from typing import Any

from gpt.errors import UserError
from gpt.fields import Fields, read_fields
from gpt.files import parse_json, read_bytes
from gpt.tokenizers import gpt2_files, sentencepiece_json
from gpt.tokenizers.base import MAX_FILE_BYTES
from gpt.tokenizers.huggingface import HfTokenizer, is_hf_json
from gpt.tokenizers.template_files import CONFIG, template_in

TOKENIZER, MODEL = 'tokenizer.json', 'tokenizer.model'
# Tokens that end a text where no file beside the tokenizer names one.
ENDS = ('<|endoftext|>', '<|end_of_text|>', '</s>', '<eos>', '<|eos|>')
NAMES = (CONFIG, 'special_tokens_map.json')
IDS = ('generation_config.json', 'config.json')
Path = str | os.PathLike[str]


def read_tokenizer(
  directory: Path,
  vocab_size: int = 0,
  file: str = TOKENIZER,
  guess: bool = False,
) -> HfTokenizer:
  """Reads the tokenizer of a model directory.

  Args:
    file: name of its tokenizer.json.
    guess: take a token of a usual name for EOS if no file names it.
    vocab_size: rows of the model's embedding; 0: as many as tokens.

  Raises:
    UserError: no tokenizer, one that cannot be read or that does not fit the
      embedding, or nothing names the token that ends a text.
  """
  directory = pathlib.Path(directory)
  path = directory / file
  pair = gpt2_files.find_files(directory)
  bos = eos = None
  if path.is_file():
    data = read_bytes(path, MAX_FILE_BYTES)
    spec = parse_json(data, path)
    if not is_hf_json(spec):
      raise UserError(f'{path} is not a Hugging Face tokenizer.json')
    texts = _texts_by_id(spec)
  elif (directory / MODEL).is_file():
    path = directory / MODEL
    try:
      pieces = sentencepiece_json.read_pieces(read_bytes(path, MAX_FILE_BYTES))
      data = sentencepiece_json.to_tokenizer_json(pieces)
    except UserError as e:
      raise UserError(f'{path}: {e}') from e
    bos, eos = pieces.name(pieces.bos), pieces.name(pieces.eos)
    texts = dict(enumerate(pieces.texts))
  elif pair:
    path = pair[0]
    data = gpt2_files.to_tokenizer_json(*pair)
    texts = _texts_by_id(parse_json(data, path))
  else:
    raise UserError(
      f'{directory} has no tokenizer: expected {TOKENIZER} or {MODEL}'
    )
  bos = _named(directory, 'bos', texts) or bos
  eos = _named(directory, 'eos', texts) or eos
  if not (bos or eos) and guess:
    eos = next((name for name in ENDS if name in texts.values()), None)
  if not (bos or eos):
    raise UserError(
      f'{directory}: nothing names the token that ends a text: add '
      f'"eos_token" to {CONFIG}'
    )
  try:
    tokenizer = HfTokenizer(
      data,
      bos=bos,
      eos=eos,
      vocab_size=vocab_size,
      add_bos=_adds_bos(directory, path.name == MODEL),
    )
  except UserError as e:
    raise UserError(f'{path}: {e}') from e
  tokenizer.chat_template = template_in(directory)
  return tokenizer


def _named(
  directory: pathlib.Path, which: str, texts: dict[int, str]
) -> str | None:
  """The token that config files name as BOS or EOS; None if none does."""
  for name in NAMES:
    fields = _entries(directory / name)
    token = fields.values.get(f'{which}_token')
    if isinstance(token, dict):
      fields = fields.mapping(f'{which}_token')
      token = fields.text('content')
    if isinstance(token, str) and token:
      return token
  for name in IDS:
    id = _entries(directory / name).values.get(f'{which}_token_id')
    id = id[0] if isinstance(id, list) and id else id
    if type(id) is int and id in texts:
      return texts[id]
  return None


def _adds_bos(directory: pathlib.Path, default: bool) -> bool | None:
  """Whether BOS begins a text; None: as the tokenizer.json says.

  Args:
    default: of a tokenizer.model, which cannot say it: Llama's begin with BOS.
  """
  added = _entries(directory / CONFIG).flag('add_bos_token', None)
  return True if added is None and default else added


def _texts_by_id(spec: dict[str, Any]) -> dict[int, str]:
  """{id: token} of a tokenizer.json that nothing has checked yet."""
  model = spec['model'] if isinstance(spec['model'], dict) else {}
  vocab, added = model.get('vocab'), spec['added_tokens']
  pairs = list(vocab.items()) if isinstance(vocab, dict) else []
  for token in added if isinstance(added, list) else []:
    if isinstance(token, dict):
      pairs.append((token.get('content'), token.get('id')))
  return {
    id: token
    for token, id in pairs
    if type(id) is int and isinstance(token, str)
  }


def _entries(path: pathlib.Path) -> Fields:
  """A JSON object; an empty one if there is no such file."""
  return read_fields(path) if path.is_file() else Fields({}, path)
