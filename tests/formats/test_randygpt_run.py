"""RandyGPT files as runs: byte round trips, and exact continued training."""

import json
import struct

import jax
import numpy as np
import pytest

from gpt.errors import UserError
from gpt.formats import randygpt, randygpt_run
from gpt.model import GPT, GPTConfig
from gpt.runs import checkpoint
from gpt.runs.load import load_model, params_sha256
from gpt.tokenizers import load_tokenizer
from gpt.tokenizers.char import CharTokenizer
from gpt.train import train_and_evaluate
from gpt.training import optimizer
from launch import config_flag
from tests.support.commands import JAX, assert_refused, run_all

CHARS = 'abcdefgh \n'
V = 2 + len(CHARS)


def config(**changes):
  config = config_flag.load_config('configs/smoke.py')
  config.update_from_flattened_dict(changes)
  return config


def write_file(
  path,
  *,
  best=1.25,
  iter=9,
  adam_step=10,
  seed=0,
  special=False,
  vocab_size=V,
):
  """An RGPT0003 file of the smoke model with random content."""
  model = config().model
  n = randygpt.count_weights(
    vocab_size, model.n_embd, model.n_layer, model.block_size
  )
  rng = np.random.default_rng(seed)
  if special:
    body = rng.integers(0, 2**32, 3 * n, dtype=np.uint32).astype('<u4')
    body &= 0xFF7FFFFF  # No exponent of infinity or NaN, which are refused.
  else:
    body = rng.normal(0, 0.02, 3 * n).astype('<f4')
    body[2 * n :] = np.abs(body[2 * n :])
  best = struct.pack('<f', best) if isinstance(best, float) else best
  header = struct.pack('<8sIII', b'RGPT0003', vocab_size, iter, adam_step)
  path.write_bytes(header + best + body.tobytes())
  return path


def load(workdir, which='latest'):
  """(state, meta) of a run's checkpoint, with its own config."""
  path = checkpoint.find(workdir, which)
  saved = config()
  cfg = GPTConfig.from_config(saved.model, V)
  return checkpoint.restore_state(
    path, randygpt_run._abstract_state(saved, cfg)
  )


@pytest.fixture
def imported(tmp_path):
  file = write_file(tmp_path / 'in.bin')
  workdir = tmp_path / 'run'
  randygpt_run.import_rgpt(file, config(), CharTokenizer(CHARS), workdir)
  return workdir


@pytest.mark.parametrize(
  'best, special',
  [
    (2.3716, False),
    (float('inf'), False),
    (-0.0, True),
    (b'\x01\x00\x80\x7f', True),  # A signalling NaN.
  ],
  ids=['number', 'inf', 'any finite bits', 'best is NaN'],
)
def test_import_then_export_is_byte_identical(tmp_path, best, special):
  file = write_file(
    tmp_path / 'in.bin', best=best, special=special, adam_step=7
  )
  workdir = tmp_path / 'run'
  randygpt_run.import_rgpt(file, config(), CharTokenizer(CHARS), workdir)
  for which in ('best', 'latest'):
    made = randygpt_run.export_rgpt(workdir, which, tmp_path / which)
    assert made[1:] == (10, [])
    knows_best = (workdir / 'checkpoints/best/10').exists()
    assert made[0] == (which if knows_best else 'latest')
    assert (tmp_path / which).read_bytes() == file.read_bytes()


def test_an_imported_state_is_at_the_iteration_after_the_files(imported):
  state, meta = load(imported)
  assert int(state.step) == 10  # iter 9 was the last one done.
  assert int(optimizer.adam_state(state.opt_state).count) == 10
  assert meta['best_loss'] == meta['plateau']['best_loss'] == 1.25
  assert load_tokenizer(imported).vocab_size == V
  saved = json.loads((imported / 'config.json').read_text())
  assert saved['model']['n_embd'] == config().model.n_embd


def test_old_weights_only_file_gets_a_fresh_optimizer(tmp_path):
  data = write_file(tmp_path / 'in.bin').read_bytes()
  n = (len(data) - 24) // 12
  bare = tmp_path / 'bare.bin'
  bare.write_bytes(b'RGPT0002' + data[8 : 24 + 4 * n])
  tokenizer = CharTokenizer(CHARS)
  randygpt_run.import_rgpt(bare, config(), tokenizer, tmp_path / 'run')
  state, _ = load(tmp_path / 'run')
  adam = optimizer.adam_state(state.opt_state)
  assert int(state.step) == 10 and int(adam.count) == 0
  assert not any(x.any() for x in jax.tree.leaves((adam.mu, adam.nu)))


def test_training_continues_as_if_it_had_never_left(tmp_path, caplog):
  """export -> import in the middle of a run changes no bit of its end.

  The import does not request a size of vocabulary, so any data.vocab_size may
  resume it.
  """
  one, two = tmp_path / 'one', tmp_path / 'two'
  settings = {
    'data.path': 'sample',
    'data.tokenizer': 'sentencepiece',
    'eval.every': 2,
    'eval.windows': 2,
    'sample.max_tokens': 1,
    'parallel.num_cpu_devices': 4,
    # A constant learning rate, so that both targets are on one curve.
    'opt.decay_fraction': 0.0,
    'checkpoint.every': 2,
  }
  own = {**settings, 'data.vocab_size': 360}
  train_and_evaluate(config(total_steps=3, **own), one)
  middle = tmp_path / 'middle.bin'
  randygpt_run.export_rgpt(one, 'latest', middle)
  assert middle.read_bytes() == (one / 'checkpoint.bin').read_bytes()
  tokenizer = load_tokenizer(one)
  assert tokenizer.requested_vocab_size == 360
  assert config(**settings).data.vocab_size != 360
  randygpt_run.import_rgpt(middle, config(**settings), tokenizer, two)
  train_and_evaluate(config(total_steps=5, **own), one)
  with caplog.at_level('INFO', 'gpt'):
    train_and_evaluate(config(total_steps=5, **settings), two)
  assert 'resuming from step 3' in caplog.text
  # The import has the same text: nothing to say about another loss on it.
  assert 'has changed' not in caplog.text
  assert 'unknown data' not in caplog.text
  ends = [(w / 'checkpoint.bin').read_bytes() for w in (one, two)]
  assert ends[0] == ends[1]
  assert ends[0][12:20] == struct.pack('<II', 4, 5)


def test_export_then_import_gives_the_same_logits(imported, tmp_path):
  out, again = tmp_path / 'out.bin', tmp_path / 'again'
  randygpt_run.export_rgpt(imported, 'best', out)
  randygpt_run.import_rgpt(out, config(), CharTokenizer(CHARS), again)
  model = GPT(GPTConfig.from_config(config().model, V))
  tokens = np.arange(12, dtype=np.int32)[None] % V
  logits = [
    model.apply(
      {'params': checkpoint.restore_params(checkpoint.find(w))}, tokens
    )
    for w in (imported, again)
  ]
  np.testing.assert_array_equal(*logits)
  assert np.std(logits[0]) > 0


def test_a_workdir_in_use_is_left_alone(imported, tmp_path):
  before = sorted(p for p in imported.rglob('*'))
  file = write_file(tmp_path / 'other.bin', seed=1)
  with pytest.raises(UserError, match='already holds config.json'):
    randygpt_run.import_rgpt(file, config(), CharTokenizer(CHARS), imported)
  assert sorted(p for p in imported.rglob('*')) == before


def test_other_vocabulary_and_other_shape_are_refused(tmp_path):
  file = write_file(tmp_path / 'in.bin')
  with pytest.raises(UserError, match='vocab_size 12 != model vocab_size 5'):
    randygpt_run.import_rgpt(
      file, config(), CharTokenizer('abc'), tmp_path / 'x'
    )
  wide = config(**{'model.n_embd': 64})
  with pytest.raises(randygpt.RgptSizeError, match='n_embd 32, n_layer 2') as e:
    # The smoke model's context is 32, so only that shape fits its size.
    randygpt_run.import_rgpt(file, wide, CharTokenizer(CHARS), tmp_path / 'x')
  assert (32, 2) in e.value.fits
  assert not (tmp_path / 'x').exists()


def test_models_the_format_cannot_represent_are_refused_both_ways(
  tmp_path, imported
):
  file = write_file(tmp_path / 'in.bin')
  other = config(**{'model.arch': 'microgpt'})
  with pytest.raises(UserError, match="model.arch is 'microgpt'"):
    randygpt_run.import_rgpt(file, other, CharTokenizer(CHARS), tmp_path / 'x')
  saved = json.loads((imported / 'config.json').read_text())
  saved['model']['final_norm'] = True
  (imported / 'config.json').write_text(json.dumps(saved))
  with pytest.raises(UserError, match='model.final_norm is True'):
    randygpt_run.export_rgpt(imported, 'best', tmp_path / 'out.bin')
  assert not (tmp_path / 'out.bin').exists()


def test_damaged_counters_are_refused(tmp_path):
  file = write_file(tmp_path / 'in.bin', iter=2**32 - 1)
  with pytest.raises(UserError, match='damaged: its iter is 4294967295'):
    randygpt_run.import_rgpt(
      file, config(), CharTokenizer(CHARS), tmp_path / 'x'
    )


# --- the two commands --------------------------------------------------------


def launch(*commands, cwd):
  """Runs [launcher, *flags] for each in `cwd`, one after the other."""
  return run_all(
    [[f'launch.{name}', *args] for name, *args in commands],
    cwd=cwd,
    preload=JAX,
  )


@pytest.fixture
def preset_file(tmp_path):
  """A file of preset xs with the vocabulary of `train.txt`, as in RandyGPT."""
  (tmp_path / 'train.txt').write_text('hello world\n' * 9)
  vocab_size = 2 + len(set('hello world\n'))
  n = randygpt.count_weights(vocab_size, 116, 3, 256)
  body = np.random.default_rng(0).normal(0, 0.02, 3 * n).astype('<f4')
  header = struct.pack('<8sIIIf', b'RGPT0003', vocab_size, 99, 100, 2.5)
  (tmp_path / 'in.bin').write_bytes(header + np.abs(body).tobytes())
  return tmp_path


def test_commands_round_trip(preset_file):
  imported, exported = launch(
    [
      'import_rgpt',
      '--input=in.bin',
      '--preset=xs',
      '--chars=train.txt',
      '--workdir=run',
    ],
    [
      'export',
      '--workdir=run',
      '--format=rgpt',
      '--output=out.bin',
      '--which=latest',
    ],
    cwd=preset_file,
  )
  assert imported.code == 0, imported.err
  assert 'at step 100' in imported.out
  assert exported.code == 0, exported.err
  before = (preset_file / 'in.bin').read_bytes()
  assert (preset_file / 'out.bin').read_bytes() == before


def test_preset_and_vocabulary_are_detected(preset_file):
  (done,) = launch(
    ['import_rgpt', '--input=in.bin', '--workdir=run'], cwd=preset_file
  )
  assert done.code == 0, done.err
  assert 'in.bin has the size of --preset=xs' in done.out
  assert 'the vocabulary is that of train.txt' in done.out
  saved = json.loads((preset_file / 'run/config.json').read_text())
  assert saved['data']['path'] == 'train.txt'


def test_the_run_that_vocab_names_gives_the_shape(trained_workdir, tmp_path):
  """Our own export has the shape and context of no preset."""
  file, workdir = trained_workdir / 'checkpoint.bin', tmp_path / 'run'
  args = ['import_rgpt', f'--input={file}', f'--workdir={workdir}']
  named = [*args, f'--vocab={trained_workdir}']
  unknown, wrong, done = launch(
    args, [*named, '--preset=xs'], named, cwd=tmp_path
  )
  assert_refused(unknown, '--vocab=WORKDIR')
  assert wrong.code == 2 and 'l (256 x 6)' in wrong.err
  assert done.code == 0, done.err
  assert f'the shape of {trained_workdir}' in done.out
  one, two = load_model(trained_workdir, 'latest'), load_model(workdir)
  assert params_sha256(one.params) == params_sha256(two.params)
  assert one.cfg == two.cfg
  assert two.config['data']['path'] == one.config['data']['path']


def test_import_mistakes_are_explained(preset_file):
  (preset_file / 'other.txt').write_text('abc')
  cases = [
    (['--input=in.bin'], ['--workdir']),
    (['--input=none.bin', '--workdir=w'], ['cannot read', 'none.bin']),
    (['--input=train.txt', '--workdir=w'], ['Bad magic bytes in checkpoint']),
    (
      ['--input=in.bin', '--preset=l', '--workdir=w'],
      ['n_embd 256', 'Try --preset=xs'],
    ),
    (
      ['--input=in.bin', '--preset=xl2', '--workdir=w'],
      ["no config file 'configs/model_xl2.py'", 'model_xl.py'],
    ),
    (
      ['--input=in.bin', '--chars=other.txt', '--workdir=w'],
      ['Checkpoint vocab_size 11 != model vocab_size 5'],
    ),
    (
      ['--input=in.bin', '--chars=a', '--vocab=b', '--workdir=w'],
      ['not both'],
    ),
  ]
  done = launch(*(['import_rgpt', *args] for args, _ in cases), cwd=preset_file)
  for one, (_, texts) in zip(done, cases):
    assert one.code == 2 and one.err.startswith('error: '), one
    for text in texts:
      assert text in one.err
  assert not (preset_file / 'w').exists()


def test_an_unknown_vocabulary_is_an_error_that_names_the_flags(preset_file):
  (preset_file / 'train.txt').unlink()
  (done,) = launch(
    ['import_rgpt', '--input=in.bin', '--workdir=w'], cwd=preset_file
  )
  assert done.code == 2
  assert '--chars=FILE' in done.err and '--vocab=' in done.err


def test_export_of_nothing_is_explained(tmp_path):
  nothing, directory = launch(
    ['export', '--workdir=w', '--output=x.bin'],
    ['export', '--workdir=w', '--output=.'],
    cwd=tmp_path,
  )
  assert nothing.code == 2 and 'no trained model in w' in nothing.err
  assert directory.code == 2 and 'is a directory' in directory.err
