"""Problems with exact answers, and a model's answers to them."""

import json
import sys

import numpy as np
import pytest

from gpt.data.conversations import parse
from gpt.data.problems import SETS, problems
from gpt.errors import UserError
from gpt.runs.exact_match import answer
from gpt.runs.load import load_model
from gpt.tokenizers import chat_format
from tests.support.chat_tools import TOKENIZER
from tests.support.commands import assert_refused, run_all
from tests.support.workdirs import launch, make_run


@pytest.fixture(scope='module')
def says_one(tmp_path_factory):
  """A chat model that answers everything with 1: a table of bigrams."""
  workdir = tmp_path_factory.mktemp('runs') / 'one'
  (one,) = TOKENIZER.encode('1').tolist()
  special = TOKENIZER.special_tokens

  def fill(name, shape):
    if name == 'wte':
      return np.eye(*shape)
    out = np.zeros(shape)
    if name == 'lm_head':
      out[one, special[chat_format.ASSISTANT]] = 9
      out[special[chat_format.END_TURN], one] = 9
    return out

  make_run(
    workdir,
    TOKENIZER,
    fill,
    block_size=256,
    data={'format': 'chat'},
    n_embd=4 * -(-TOKENIZER.vocab_size // 4),
    n_head=2,
    n_layer=1,
  )
  return workdir


@pytest.mark.parametrize('task', [*SETS, 'lcm'])
def test_what_trains_never_tests(task):
  train = problems(task, 600, seed=1, held_out=False)
  test = problems(task, 90, seed=2, held_out=True)
  questions = [problem.question for problem in train + test]
  assert len({*questions}) == 690
  assert problems(task, 90, seed=2, held_out=True) == test


def test_every_generator_gets_an_equal_share():
  found = problems('arithmetic', 30, seed=1, held_out=False)
  assert [p.task for p in found] == [*SETS['arithmetic']] * 10


def test_answers_are_right():
  for problem in problems('chain_sum', 50, seed=3, held_out=True):
    sum_of = problem.question.split(': ')[1].removesuffix(' =')
    assert eval(sum_of) == int(problem.answer)


def test_problems_are_chat_data(tmp_path):
  file = tmp_path / 'sums.jsonl'
  out, _ = launch('problems', '--count=20', f'--output={file}')
  assert 'wrote 20 problems' in out
  conversations = [
    parse(line, i) for i, line in enumerate(file.read_text().splitlines(), 1)
  ]
  assert conversations == [
    p.conversation()
    for p in problems('arithmetic', 20, seed=42, held_out=False)
  ]


def test_exact_answers_are_counted(says_one):
  out, _ = launch(
    'evaluate', f'--workdir={says_one}', '--task=arithmetic', '--problems=96'
  )
  report = json.loads(out.splitlines()[-1])
  asked = problems('arithmetic', 96, seed=0, held_out=True)
  ones = sum(p.answer == '1' for p in asked)
  assert 0 < ones < 96
  assert report['exact_match'] == ones / 96
  gcds = [p.answer for p in asked if p.task == 'gcd']
  assert report['exact_match_by_kind']['gcd'] == gcds.count('1') / len(gcds)


def test_an_answer_ends_with_its_turn(says_one):
  asked = problems('gcd', 12, seed=0, held_out=True)
  given = answer(load_model(says_one), asked)
  assert {x.given for x in given} == {'1'}
  assert all(x.right == (x.problem.answer == '1') for x in given)


def test_there_are_only_so_many_small_problems(monkeypatch):
  tables = {'products': {'min_terms': 2, 'max_terms': 2, 'max_digits': 1}}
  monkeypatch.setitem(SETS, 'tables', tables)
  with pytest.raises(UserError, match='only 92 different problems'):
    problems('tables', 100, seed=1, held_out=False)


def test_mistakes_are_explained(says_one, tmp_path):
  cases = {
    "task 'sums': Dataset": ['problems', '--task=sums', '--output=x.jsonl'],
    'leave out --ids, --data and --split': [
      *('evaluate', f'--workdir={says_one}', '--task=gcd', '--split=val')
    ],
    'there exists already': ['problems', f'--output={tmp_path / "there"}'],
  }
  (tmp_path / 'there').write_text('mine')
  done = run_all([[f'launch.{name}', *args] for name, *args in cases.values()])
  for one, message in zip(done, cases):
    assert_refused(one, message)


def test_a_missing_package_names_its_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, 'reasoning_gym', None)
  with pytest.raises(UserError, match=r"pip install 'rgpt\[evals\]'"):
    problems('arithmetic', 1, seed=0, held_out=True)
