"""Values in Markdown stay text, whatever they contain."""

import json
import re

import pytest

from gpt.errors import UserError
from gpt.formats import markdown, model_card
from gpt.runs.load import load_model
from gpt.tokenizers import CharTokenizer
from tests.support.export_tools import random_weights
from tests.support.workdirs import make_run

HOSTILE = (
  '</td><script>alert(1)</script> ![x](http://e.x/y) [a](javascript:b) | c\n'
  '---\nlicense: evil\n---\n# head\n```\n~~~\n<img src=x onerror=alert(1)>\n'
  '````\n@someone www.e.x <http://e.x> `code` *b* _i_ \\<b> \r\n\x00'
)
# Alive outside of code blocks: tags, links, images, code, tables, emphasis,
# automatic links and mentions.
ALIVE = re.compile(
  r'<[a-zA-Z/!]|(?<!\\)[`\[\]*~]|://|www\.|@\w|(?<!\\)(?:(?<!\w)_|_(?!\w))'
)


def without_code(text: str) -> str:
  """Markdown without its fenced blocks, by the rules of CommonMark 0.31."""
  kept, fence = [], ''
  for line in re.split(r'\r\n|\n|\r', text):
    found = re.match(r' {0,3}(`{3,}(?=[^`]*$)|~{3,})', line)
    if fence:
      closing = found and not line.replace(found[1][0], '').strip()
      if closing and found[1].startswith(fence):
        fence = ''
    elif found:
      fence = found[1]
    else:
      kept.append(line)
  assert not fence, 'a code block is never closed'
  return '\n'.join(kept)


def test_an_escaped_value_is_one_line_without_markup():
  text = markdown.escape(HOSTILE)
  assert not re.search(r'[\x00-\x1f]', text) and not ALIVE.search(text)
  for plain in ('relu2', 'embed_norm', '0.02', 'a-b: c (d), 1e-05', "'x'"):
    assert markdown.escape(plain) == plain


def test_a_table_keeps_its_two_columns():
  lines = markdown.table({HOSTILE: HOSTILE, 'a': 1}).split('\n')
  bars = [len(re.findall(r'(?<!\\)\|', line)) for line in lines]
  assert bars == [3, 3, 3, 3]


@pytest.mark.parametrize('text', [HOSTILE, '`' * 9, '~~~\n```\n<b>', '\n```'])
def test_nothing_leaves_a_code_block(text):
  page = f'before\n\n{markdown.fence(text)}\n\nafter'
  assert without_code(page).split() == ['before', 'after']


def leaves(tree, path=()):
  """Paths of all values that are no dicts."""
  for name, value in tree.items():
    if isinstance(value, dict):
      yield from leaves(value, (*path, name))
    else:
      yield (*path, name)


def test_no_field_of_a_run_is_alive_in_its_model_card(tmp_path, monkeypatch):
  """Each field in turn; the model's own options cannot hold text."""
  monkeypatch.setattr(model_card, 'sample', lambda loaded: (HOSTILE, HOSTILE))
  make_run(tmp_path, CharTokenizer('abc\n'), random_weights(), n_layer=1)
  end = {'step': 7, 'outcome': HOSTILE, 'full_best_nats_per_token': HOSTILE}
  end['full_final_bits_per_byte'] = end['full_final_nats_per_token'] = HOSTILE
  (tmp_path / 'metrics.jsonl').write_text(json.dumps(end) + '\n')
  data = {'kind': HOSTILE, 'description': HOSTILE, 'text_sha256': HOSTILE}
  (tmp_path / 'data.json').write_text(json.dumps(data))
  path = tmp_path / 'config.json'
  good = json.loads(path.read_text())
  clean = alive_in(load_model(tmp_path), tmp_path)
  shown = 0
  for *groups, name in leaves(good):
    bad = json.loads(json.dumps(good))
    group = bad
    for step in groups:
      group = group[step]
    group[name] = HOSTILE.replace('\x00', '')  # NUL is refused everywhere.
    path.write_text(json.dumps(bad))
    try:
      loaded = load_model(tmp_path)
    except UserError:  # Options of the model, the format's number.
      continue
    assert alive_in(loaded, tmp_path) == clean, (*groups, name)
    shown += 1
  assert shown >= 15  # The strings; numbers cannot hold text either.


def alive_in(loaded, workdir) -> list[str]:
  """What is alive in a card: the same for each run of this model."""
  card = model_card.card(loaded, workdir, None)
  assert card.split('\n---\n')[0].count('\n') == 3  # The front matter.
  text = without_code(card)
  assert not re.search('(?i)<script|<img|</td', text)
  return ALIVE.findall(text)
