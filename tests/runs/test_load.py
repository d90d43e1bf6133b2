"""Loading a run: complete, or a clear error."""

import hashlib
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from gpt.errors import UserError
from gpt.runs import checkpoint
from gpt.runs.load import load_model, params_sha256
from gpt.tokenizers import build_tokenizer
from tests.support.logs import log_lines
from tests.support.workdirs import make_run


@pytest.fixture
def copy(trained_workdir, tmp_path):
  """A copy of the trained run, to be damaged."""
  return pathlib.Path(shutil.copytree(trained_workdir, tmp_path / 'copy'))


def checkpoints_in(workdir, which):
  return sorted(
    (workdir / 'checkpoints' / which).iterdir(), key=lambda p: int(p.name)
  )


def flip_bytes(path):
  """Changes every file of a checkpoint's weights, but not its length."""
  for file in (path / 'params').rglob('*'):
    if file.is_file():
      data = bytearray(file.read_bytes())
      for i in range(len(data) // 3, len(data), 997):
        data[i] ^= 0x55
      file.write_bytes(data)


def truncate(path):
  for file in (path / 'params').rglob('*'):
    if file.is_file():
      file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGE = {
  'changed bytes': flip_bytes,
  'half a file': truncate,
  'no weights': lambda path: shutil.rmtree(path / 'params'),
  'no metadata': lambda path: shutil.rmtree(path / 'meta'),
  'bad metadata': lambda path: (path / 'meta' / 'metadata').write_text('{"a'),
}


def test_best_and_latest_are_what_training_left(trained_workdir):
  best = load_model(trained_workdir)
  latest = load_model(str(trained_workdir), 'latest')
  assert (best.which, latest.which) == ('best', 'latest')
  assert latest.step == 20
  assert best.name == 'randygpt-2L-4H-32D'
  assert best.config['model']['n_layer'] == best.cfg.n_layer == 2
  assert best.tokenizer.vocab_size == best.cfg.vocab_size
  assert all(
    isinstance(x, np.ndarray) and x.dtype == np.float32
    for x in jax.tree.leaves(best.params)
  )
  assert best.params['wte'].shape == (best.cfg.vocab_size, 32)


def test_training_data_is_not_needed(copy):
  for name in ('cache', 'data.json', 'metrics.jsonl'):
    path = copy / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  assert load_model(copy).step == load_model(copy, 'latest').step


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_best_gives_way_to_the_latest_with_a_warning(copy, damage):
  DAMAGE[damage](checkpoints_in(copy, 'best')[-1])
  with log_lines() as warnings:
    loaded = load_model(copy)
  assert (loaded.which, loaded.step) == ('latest', 20)
  # Where the metadata is gone too, no loss makes it the first to be tried.
  (warning,) = warnings
  assert 'best' in warning and 'using latest of step 20 instead' in warning


def test_a_damaged_latest_gives_way_to_the_one_before(copy):
  truncate(checkpoints_in(copy, 'latest')[-1])
  with log_lines() as warnings:
    loaded = load_model(copy, 'latest')
  assert (loaded.which, loaded.step, len(warnings)) == ('latest', 15, 1)


def test_nothing_readable_is_an_error_that_names_all(copy):
  for which in ('best', 'latest'):
    for path in checkpoints_in(copy, which):
      truncate(path)
  with pytest.raises(UserError) as e:
    load_model(copy)
  for path in checkpoints_in(copy, 'best') + checkpoints_in(copy, 'latest'):
    assert str(path) in str(e.value)


def damage_config(workdir, **changes):
  path = workdir / 'config.json'
  config = json.loads(path.read_text())
  for key, value in changes.items():
    if value is None:
      del config['model'][key]
    else:
      config['model'][key] = value
  path.write_text(json.dumps(config))


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda w: shutil.rmtree(w), 'no trained model.*no such directory'),
    (lambda w: shutil.rmtree(w / 'checkpoints'), 'holds no checkpoint yet'),
    (lambda w: (w / 'config.json').unlink(), 'no config.json'),
    (lambda w: (w / 'config.json').write_text('{'), 'config.json is not JSON'),
    (lambda w: shutil.rmtree(w / 'tokenizer'), 'no tokenizer in'),
    (
      lambda w: (w / 'tokenizer' / 'tokenizer.json').write_text('{'),
      'tokenizer.json is not JSON',
    ),
    (lambda w: damage_config(w, n_embd=36), 'n_embd is 36, but .* with 32'),
    (lambda w: damage_config(w, n_embd=33), 'config.json: n_embd 33 is not'),
    (lambda w: damage_config(w, n_head=None, wings=2), 'not a config of this'),
  ],
)
def test_missing_files_are_named(copy, change, message):
  change(copy)
  with pytest.raises(UserError, match=message):
    load_model(copy)


def test_kernel_of_another_machine_does_not_matter(copy):
  damage_config(copy, attention='cudnn')
  assert load_model(copy).cfg.attention == 'blocked'


def test_which_is_checked(trained_workdir):
  with pytest.raises(UserError, match='--which=worst.*best, latest'):
    load_model(trained_workdir, 'worst')


def test_the_best_is_that_of_the_lowest_loss(copy):
  """There are two if a run was killed before it deleted the worse one."""
  best = checkpoints_in(copy, 'best')[-1]
  worse = shutil.copytree(best, best.parent / '999')
  meta = json.loads((worse / 'meta' / 'metadata').read_text())
  meta['best_loss'] += 1
  (worse / 'meta' / 'metadata').write_text(json.dumps(meta))
  assert load_model(copy).path == best
  (worse / 'meta' / 'metadata').unlink()
  assert checkpoint.find(copy) == best


def test_the_hash_is_over_the_bytes_of_the_leaves_in_order(tmp_path):
  """As documented, so that others can compute it; it never changes."""
  tokenizer = build_tokenizer('char', ['ab'], 0)
  count = iter(range(100))
  params = make_run(
    tmp_path,
    tokenizer,
    lambda name, shape: np.full(shape, next(count)),
    block_size=4,
    n_embd=8,
    n_layer=11,
  )
  loaded = load_model(tmp_path)
  digest = params_sha256(loaded.params)
  assert (
    digest
    == params_sha256(params)
    == params_sha256(jax.tree.map(np.asfortranarray, params))
  )
  flat = {}
  for name, leaf in params.items():
    if isinstance(leaf, dict):
      flat |= {f'{name}/{k}': v for k, v in leaf.items()}
    else:
      flat[name] = leaf
  names = sorted(flat)
  assert names.index('block_10/fc1') < names.index('block_2/fc1')  # As text.
  data = b''.join(flat[n].astype('<f4').tobytes() for n in names)
  assert digest == hashlib.sha256(data).hexdigest()
