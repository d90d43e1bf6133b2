"""Sources of chat templates: a name, a file, a model's directory."""

import os
import pathlib
import re

from gpt.errors import UserError
from gpt.files import read_bytes, read_json
from gpt.tokenizers.base import TEMPLATE_FILE

# Turns between <|im_start|> and <|im_end|>, the format that most programs know.
CHATML = (
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' "
  "+ message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
BUILTIN = {'chatml': CHATML}
MAX_BYTES = 1 << 20
CONFIG = 'tokenizer_config.json'  # Of transformers.


def read_template(name: str) -> str:
  """The text of a chat template.

  Args:
    name: one of BUILTIN, or the path of a file.

  Raises:
    UserError: no such template.
  """
  if name in BUILTIN:
    return BUILTIN[name]
  if not pathlib.Path(name).is_file():
    raise UserError(
      f'no such chat template: {name}; give a file, or one of '
      f'{", ".join(BUILTIN)}'
    )
  text = _read(pathlib.Path(name))
  if not text.strip():
    raise UserError(f'the chat template {name} is empty')
  return text


def _read(path: pathlib.Path) -> str:
  try:
    return read_bytes(path, MAX_BYTES).decode('utf-8')
  except UnicodeDecodeError as e:
    raise UserError(f'the chat template {path} is not UTF-8: {e}') from e


def template_in(directory: str | os.PathLike[str]) -> str:
  """The chat template of a tokenizer's or a model's directory, or ''.

  Raises:
    UserError: a file cannot be read.
  """
  directory = pathlib.Path(directory)
  path = directory / TEMPLATE_FILE
  if path.is_file():
    return _read(path)
  config = directory / CONFIG
  found = read_json(config) if config.is_file() else {}
  found = found.get('chat_template') if isinstance(found, dict) else None
  if isinstance(found, list):  # Several, by name.
    named = {
      entry.get('name'): entry.get('template')
      for entry in found
      if isinstance(entry, dict) and isinstance(entry.get('name'), str)
    }
    found = named.get('default')
  return found if isinstance(found, str) else ''


def control_names(template: str) -> tuple[str, ...]:
  """The control tokens a template writes, such as <|im_start|>, in order."""
  return tuple(dict.fromkeys(re.findall(r'<\|\w+\|>', template)))
