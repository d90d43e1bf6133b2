"""launch.bench.budgets, and the settings of a recipe in it."""

import json

import pytest

from launch.bench.recipe_settings import settings
from tests.support.workdirs import launch

CHAT = [
  {'role': 'user', 'content': 'How are you?'},
  {'role': 'assistant', 'content': 'Fine.'},
]


@pytest.fixture
def files(tmp_path):
  """(a book, conversations)."""
  book, chat = tmp_path / 'book.txt', tmp_path / 'chat.jsonl'
  book.write_text('Once upon a time there was a book.\n' * 100)
  chat.write_text((json.dumps(CHAT) + '\n') * 100)
  return str(book), str(chat)


def test_a_recipe_brings_its_model_and_not_the_length_of_the_run(files):
  book, _ = files
  given = settings('speedrun_10min', book)
  assert given['model.n_embd'] == 128 and given['model.block_size'] == 256
  assert given['opt.name'] == 'muon' and given['model.dtype'] == 'mixed'
  assert not given.keys() & {'total_steps', 'data.vocab_size', 'eval.every'}
  given = settings('shakespeare_bpe', book)
  assert given['data.vocab_size'] == 1000
  given = settings('portable_small', book)
  assert given['model.mlp'] == 'swiglu' and given['model.mlp_width']


def test_all_read_conversations_to_the_same_length(files):
  _, chat = files
  assert 'model.block_size' not in settings('speedrun_10min', chat)


@pytest.mark.parametrize(
  'args, message',
  [
    ([], '--texts=FILE,... is needed'),
    (['--texts=a', '--budgets=soon'], "budget 'soon' is not a time"),
  ],
)
def test_a_mistake_is_explained(args, message):
  _, err = launch('bench.budgets', *args, code=2)
  assert message in err and 'Traceback' not in err
