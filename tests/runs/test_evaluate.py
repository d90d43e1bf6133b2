"""Evaluation: losses known by hand, and every target counted once."""

import dataclasses
import json
import math
import re

import jax
import numpy as np
import pytest

from gpt.data.sample_text import sample_text
from gpt.decoding.inspect import check_ids, write_logits
from gpt.errors import UserError
from gpt.runs import metrics
from gpt.runs.evaluate import full_pass, open_dataset
from gpt.runs.load import load_model
from gpt.tokenizers import build_tokenizer
from tests.support.commands import JAX, assert_refused, run_all
from tests.support.logs import log_lines
from tests.support.workdirs import launch, make_parrot, make_run

TEXT = 'Grüße, 世界! ' * 40 + 'end'


def last_line(out: str) -> dict:
  return json.loads(out.splitlines()[-1])


def evaluate(workdir, *, path='', split=''):
  """(numbers, split) in this process."""
  loaded = load_model(workdir)
  seen = []
  with open_dataset(loaded, workdir, str(path), split) as (dataset, split):
    values = full_pass(loaded, dataset, split, seen.append)
  assert sum(seen) == values['tokens']
  return values, split


@pytest.fixture(scope='module')
def uniform(tmp_path_factory):
  """A run whose model gives every token the same probability."""
  workdir = tmp_path_factory.mktemp('uniform')
  tokenizer = build_tokenizer('char', [TEXT], 0)
  make_run(workdir, tokenizer, lambda _, shape: np.zeros(shape))
  return workdir


def test_a_uniform_model_has_the_loss_log_v(uniform, tmp_path):
  file = tmp_path / 'text.txt'
  file.write_text(TEXT, encoding='utf-8')
  out, err = launch('evaluate', f'--workdir={uniform}', f'--data={file}')
  vocab = 2 + len(set(TEXT))
  targets = TEXT[1:]  # Nothing comes before the first character.
  values = last_line(out)
  assert values['tokens'] == len(targets)
  assert values['nats_per_token'] == pytest.approx(math.log(vocab), rel=1e-5)
  assert values['ppl'] == pytest.approx(vocab, rel=1e-5)
  bits = len(targets) * math.log2(vocab)
  assert values['bits_per_byte'] == pytest.approx(
    bits / len(targets.encode()), rel=1e-5
  )
  assert (values['split'], values['pass']) == ('all', 'full')
  assert (values['which'], values['step']) == ('best', 7)
  table = dict(re.findall(r'^  (\S+) +([\d.,]+)$', out, re.MULTILINE))
  assert table == {
    'tokens': f'{len(targets):,}',
    'nats/token': f'{values["nats_per_token"]:.4f}',
    'perplexity': f'{values["ppl"]:.4f}',
    'bits/byte': f'{values["bits_per_byte"]:.4f}',
  }
  assert 'full pass' in out
  assert err == ''


def test_a_perfect_model_has_zero_loss(tmp_path):
  """The parrot looks at positions only, so its second window starts anew."""
  tokenizer = build_tokenizer('char', ['abcdefgh'], 0)
  ids = tokenizer.encode('bcdefgha')
  make_parrot(tmp_path / 'run', tokenizer, ids)
  (tmp_path / 'right.txt').write_text('abcdefgh' * 5)
  (tmp_path / 'wrong.txt').write_text('abcdefhg')
  right, _ = evaluate(tmp_path / 'run', path=tmp_path / 'right.txt')
  assert right['nats_per_token'] == pytest.approx(0, abs=1e-6)
  assert right['tokens'] == 39
  wrong, _ = evaluate(tmp_path / 'run', path=tmp_path / 'wrong.txt')
  # Two of seven targets are not what the parrot says, with logits 50 and 0.
  assert wrong['nats_per_token'] == pytest.approx(2 / 7 * 50, rel=1e-5)


def test_the_own_validation_split_matches_training_and_brute_force(
  trained_workdir,
):
  loaded = load_model(trained_workdir, 'latest')
  with open_dataset(loaded, trained_workdir) as (dataset, split):
    values = full_pass(loaded, dataset, split)
    first, end = dataset.corpus.bounds('val')
    tokens = np.asarray(dataset.corpus.tokens[first:end], np.int32)
  assert split == 'val'
  assert values['tokens'] == len(tokens) - 1

  T = loaded.cfg.block_size
  whole = (len(tokens) - 1) // T
  inputs = tokens[: whole * T].reshape(-1, T)
  targets = tokens[1 : whole * T + 1].reshape(-1, T)

  @jax.jit
  def log_probs(params, tokens_BL):
    return jax.nn.log_softmax(loaded.model.apply({'params': params}, tokens_BL))

  logp = np.asarray(log_probs(loaded.params, inputs), np.float64)
  nats = -np.take_along_axis(logp, targets[..., None], -1).sum()
  rest = tokens[whole * T :]
  logp = np.asarray(log_probs(loaded.params, rest[None, :-1]), np.float64)
  nats -= logp[0, np.arange(len(rest) - 1), rest[1:]].sum()
  assert values['nats_per_token'] == pytest.approx(
    nats / (len(tokens) - 1), rel=1e-6
  )
  lines = metrics.read(trained_workdir / 'metrics.jsonl')
  (logged,) = [
    line['full_final_nats_per_token']
    for line in lines
    if 'full_final_nats_per_token' in line
  ]
  assert values['nats_per_token'] == pytest.approx(logged, rel=1e-6)


def test_splits_are_those_of_the_run(trained_workdir):
  n = len(sample_text())
  sizes = {'train': int(n * 0.9), 'val': n - int(n * 0.9), 'all': n}
  loaded = load_model(trained_workdir)
  for split, size in sizes.items():
    with open_dataset(loaded, trained_workdir, split=split) as (dataset, got):
      targets = sum(
        batch['weights'].sum() for batch in dataset.eval_batches(split, None, 9)
      )
    assert (got, targets) == (split, size - 1)


def test_the_training_text_given_as_a_file_is_recognised(
  trained_workdir, tmp_path
):
  """Otherwise most of the evaluated text would be training text."""
  file = tmp_path / 'same.txt'
  file.write_text(sample_text())
  before = sorted(trained_workdir.rglob('*'))
  out, _ = launch(
    'evaluate',
    f'--workdir={trained_workdir}',
    f'--data={file}',
    '--which=latest',
  )
  values = last_line(out)
  assert (values['split'], values['which']) == ('val', 'latest')
  n = len(sample_text())
  assert values['tokens'] == n - int(0.9 * n) - 1
  loaded = load_model(trained_workdir)
  with open_dataset(loaded, trained_workdir, str(file), 'all') as (_, split):
    assert split == 'all'
  assert sorted(trained_workdir.rglob('*')) == before  # Nothing is left there.


def test_a_text_shorter_than_the_window_is_enough(trained_workdir, tmp_path):
  file = tmp_path / 'short.txt'
  file.write_text('my')
  assert evaluate(trained_workdir, path=file)[0]['tokens'] == 1
  for text in ('', 'm', '\u2603\u2603'):
    file.write_text(text)
    with pytest.raises(UserError, match='nothing to evaluate'):
      evaluate(trained_workdir, path=file)


def test_dropped_characters_are_reported(trained_workdir, tmp_path):
  file = tmp_path / 'other.txt'
  file.write_bytes('snow\u2603man \u2603\r\n'.encode())
  out, err = launch(
    'evaluate', f'--workdir={trained_workdir}', f'--data={file}'
  )
  assert last_line(out)['dropped_characters'] == 2
  assert last_line(out)['tokens'] == len('snowman \n') - 1
  assert "'\u2603' x2" in err and 'CRLF' in err


def test_a_changed_text_is_noticed(tmp_path):
  file = tmp_path / 'text.txt'
  file.write_text(TEXT)
  tokenizer = build_tokenizer('char', [TEXT], 0)
  make_run(
    tmp_path / 'run',
    tokenizer,
    lambda _, shape: np.zeros(shape),
    data={'path': str(file)},
  )
  with log_lines() as lines:
    assert evaluate(tmp_path / 'run')[1] == 'val'
  assert lines == [
    f'note: the text this run was trained on is unknown; evaluating on {file}'
  ]
  (tmp_path / 'run' / 'data.json').write_text(
    '{"kind": "files", "description": "what it was", "text_sha256": "0"}'
  )
  with log_lines() as lines:
    evaluate(tmp_path / 'run')
  assert 'the text has changed since this run was trained' in lines[0]


def test_logits_are_those_of_the_model(trained_workdir, tmp_path):
  loaded = load_model(trained_workdir)
  ids = np.random.default_rng(0).integers(0, loaded.cfg.vocab_size, (3, 9))
  np.save(tmp_path / 'ids.npy', ids.astype(np.uint16))
  out, err = launch(
    'evaluate',
    f'--workdir={trained_workdir}',
    f'--ids={tmp_path}/ids.npy',
    f'--logits_out={tmp_path}/logits',
  )
  assert last_line(out)['shape'] == [3, 9, loaded.cfg.vocab_size]
  logits = np.load(tmp_path / 'logits')
  assert logits.dtype == np.float32
  wanted = loaded.model.apply({'params': loaded.params}, ids.astype(np.int32))
  np.testing.assert_allclose(logits, np.asarray(wanted), rtol=0, atol=1e-5)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['ids.npy', 'logits']
  assert err == ''


def test_many_rows_are_processed_in_parts(uniform, tmp_path, monkeypatch):
  monkeypatch.setattr('gpt.decoding.inspect.TOKENS_PER_PASS', 20)
  loaded = load_model(uniform)
  # Each position's logits say which token stands there.
  vocab, width = loaded.cfg.vocab_size, loaded.cfg.n_embd
  params = dict(loaded.params, wte=np.eye(vocab, width, dtype=np.float32))
  params['lm_head'] = params['wte']
  loaded = dataclasses.replace(loaded, params=params)
  ids = np.random.default_rng(0).integers(0, min(vocab, width), (7, 9))
  assert write_logits(loaded.cfg, loaded.params, ids, tmp_path / 'g.npy') == (
    7,
    9,
    vocab,
  )
  logits = np.load(tmp_path / 'g.npy')
  np.testing.assert_array_equal(logits.argmax(-1), ids)


@pytest.mark.parametrize(
  'ids, message',
  [
    (np.zeros((2, 3)), 'float64; expected integers'),
    (np.zeros(3, int), r'shape \[3\]'),
    (np.zeros((0, 3), int), r'shape \[0, 3\]'),
    (np.zeros((1, 33), int), 'rows of 33 ids are longer than.* 32'),
    (np.array([[0, -1]]), 'from -1 to 0; allowed: 0 to'),
    (np.array([[0, 10**6]]), 'from 0 to 1000000; allowed'),
  ],
)
def test_invalid_ids_are_refused(uniform, ids, message):
  with pytest.raises(UserError, match=message):
    check_ids(ids, load_model(uniform).cfg)


def test_a_failed_write_leaves_nothing(uniform, tmp_path):
  loaded, ids = load_model(uniform), np.zeros((1, 2), int)
  with pytest.raises(UserError, match='cannot write .*No such file'):
    write_logits(loaded.cfg, loaded.params, ids, tmp_path / 'absent' / 'g.npy')
  (tmp_path / 'g.npy').mkdir()  # Cannot be replaced by a file.
  with pytest.raises(UserError, match='cannot write'):
    write_logits(loaded.cfg, loaded.params, ids, tmp_path / 'g.npy')
  assert [p.name for p in tmp_path.iterdir()] == ['g.npy']


def test_mistakes_are_explained(uniform):
  workdir = f'--workdir={uniform}'
  logits = [workdir, '--logits_out=g']
  cases = {
    '--workdir=DIRECTORY of a trained run is needed': [],
    'belong together': [workdir, '--ids=f.npy'],
    '--ids replaces --data and --split': [
      *logits,
      '--ids=f.npy',
      '--split=val',
    ],
    'cannot read --ids=pyproject.toml as a .npy array': [
      *logits,
      '--ids=pyproject.toml',
    ],
    'absent.txt does not exist': [workdir, '--data=absent.txt'],
  }
  done = run_all(
    [['launch.evaluate', *args] for args in cases.values()], preload=JAX
  )
  for one, message in zip(done, cases):
    assert_refused(one, message)
    assert one.out == ''
