"""Checkpoints are exact and atomic, and the newest intact one is restored.

Damage is done to the files themselves: truncated, overwritten, deleted.
"""

import json
import math
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import smoke
from gpt.errors import UserError
from gpt.model import GPT, GPTConfig
from gpt.runs import checkpoint
from gpt.runs.checkpoint import BEST, LATEST, DamagedCheckpoint
from gpt.runs.checkpoint_meta import sealed
from gpt.runs.checkpoint_writer import Checkpoints
from gpt.training import optimizer
from gpt.training.state import create_state
from tests.support.logs import log_lines

CFG = GPTConfig(vocab_size=5, n_embd=4, n_head=1, n_layer=1, block_size=4)


def make_state(step=0, seed=0, ema=False):
  """A numpy TrainState with random numbers in every array."""
  tx = optimizer.create(smoke.get_config())
  state = jax.eval_shape(
    lambda key: create_state(GPT(CFG), tx, key, ema=ema),
    jax.random.key(0),
  )
  rng = np.random.default_rng((seed, step))
  state = jax.tree.map(
    lambda x: np.asarray(rng.normal(size=x.shape) * 100).astype(x.dtype), state
  )
  return state.replace(step=np.asarray(step, np.int32))


def assert_same_bits(given, wanted):
  assert jax.tree.structure(given) == jax.tree.structure(wanted)
  for a, b in zip(jax.tree.leaves(given), jax.tree.leaves(wanted)):
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype and a.shape == b.shape
    assert a.tobytes() == b.tobytes()


def save(workdir, *items, keep=2):
  """Saves (which, step, loss), ... one after the other."""
  checkpoints = Checkpoints(workdir, keep)
  for which, step, loss in items:
    assert checkpoints.save(which, make_state(step), {'best_loss': loss})
  assert checkpoints.wait()
  checkpoints.close()


def steps(workdir, which):
  folder = pathlib.Path(workdir) / 'checkpoints' / which
  return sorted(int(path.name) for path in folder.iterdir())


def restore(workdir):
  """((state, meta), lines that were logged)."""
  with log_lines() as lines:
    result = Checkpoints(workdir).restore_latest(make_state())
  return result, lines


def files_of(path):
  """{relative name: bytes} of all files under a path."""
  path = pathlib.Path(path)
  return {
    str(file.relative_to(path)): file.read_bytes()
    for file in path.rglob('*')
    if file.is_file()
  }


def largest_file(path):
  files = (file for file in path.rglob('*') if file.is_file())
  return max(files, key=lambda file: file.stat().st_size)


@pytest.mark.parametrize('ema', [False, True])
def test_state_comes_back_bit_for_bit(tmp_path, ema):
  state = make_state(7, ema=ema)
  special = np.array([np.nan, -0.0, 1e-42, np.inf], np.float32)
  state.params['wte'][0] = special
  checkpoints = Checkpoints(tmp_path)
  meta = {'best_loss': 1.25, 'plateau': {'best_loss': 1.25, 'best_step': 5}}
  assert checkpoints.save(LATEST, jax.device_put(state), meta)
  assert checkpoints.wait()
  target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
  restored, restored_meta = checkpoints.restore_latest(target)
  assert_same_bits(restored, state)
  assert {**restored_meta, **meta} == restored_meta
  path = checkpoint.find(tmp_path, LATEST)
  assert_same_bits(
    checkpoint.restore_params(path), state.ema if ema else state.params
  )
  checkpoints.close()


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path):
  """The file holds the state at the time of the call."""
  state = jax.tree.map(jnp.asarray, make_state(3))
  wanted = jax.device_get(jax.tree.map(jnp.copy, state))
  overwrite = jax.jit(
    lambda s: jax.tree.map(jnp.zeros_like, s), donate_argnums=0
  )
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(LATEST, state, {})
  overwrite(state)
  checkpoints.wait()
  assert_same_bits(restore(tmp_path)[0][0], wanted)
  checkpoints.close()


def test_newest_of_the_latest_are_kept(tmp_path):
  save(tmp_path, *((LATEST, step, 1.0) for step in (1, 2, 3, 10)), keep=2)
  assert steps(tmp_path, LATEST) == [3, 10]


def test_only_the_lowest_loss_is_kept_as_best(tmp_path):
  save(tmp_path, (BEST, 1, 3.0), (BEST, 2, 2.0), (BEST, 3, 1.0))
  assert steps(tmp_path, BEST) == [3]
  save(tmp_path, (LATEST, 9, 1.0))
  assert checkpoint.find(tmp_path, BEST).parts[-2:] == (BEST, '3')
  assert checkpoint.find(tmp_path, LATEST).parts[-2:] == (LATEST, '9')


def test_beaten_bests_do_not_pile_up_during_a_run(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  for step in range(1, 6):
    checkpoints.save(BEST, make_state(step), {'best_loss': 10.0 - step})
    finished = [
      name
      for name in (tmp_path / 'checkpoints' / BEST).iterdir()
      if name.name.isdigit()
    ]
    assert len(finished) <= 2
  checkpoints.wait()
  checkpoints.close()


def test_best_without_any_is_the_latest(tmp_path):
  save(tmp_path, (LATEST, 4, 1.0))
  assert checkpoint.find(tmp_path, BEST).parts[-2:] == (LATEST, '4')


@pytest.mark.parametrize(
  'which, words',
  [
    (BEST, 'no trained model in'),
    (LATEST, 'no trained model in'),
    ('newest', '--which=newest is not known; allowed: best, latest'),
  ],
)
def test_missing_runs_are_named(tmp_path, which, words):
  with pytest.raises(UserError) as error:
    checkpoint.find(tmp_path / 'nothing', which)
  assert words in str(error.value)


def test_nothing_to_restore_is_none(tmp_path):
  assert restore(tmp_path) == (None, [])


def test_resume_takes_the_newest_of_both_kinds(tmp_path):
  save(tmp_path, (LATEST, 5, 2.0), (BEST, 8, 1.0))
  (state, meta), _ = restore(tmp_path)
  assert int(state.step) == meta['step'] == 8
  save(tmp_path, (LATEST, 10, 1.0))
  assert int(restore(tmp_path)[0][0].step) == 10


def truncate(path):
  file = largest_file(path)
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(path):
  file = largest_file(path)
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)


def empty_metadata(path):
  (path / 'meta' / 'metadata').write_text('')


def remove_arrays(path):
  for file in (path / 'params').rglob('*'):
    if file.is_file():
      file.unlink()


def swap_arrays(path):
  """Readable and complete, but of another step: only the checksum differs."""
  meta = json.loads((path / 'meta' / 'metadata').read_text())
  meta['checksum'] += 1
  (path / 'meta' / 'metadata').write_text(json.dumps(meta))


DAMAGE = [truncate, flip_a_bit, empty_metadata, remove_arrays, swap_arrays]


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_checkpoint_is_moved_and_the_previous_one_used(
  tmp_path, damage
):
  save(tmp_path, (LATEST, 5, 1.0), (LATEST, 10, 1.0))
  bad = tmp_path / 'checkpoints' / LATEST / '10'
  damage(bad)
  contents = files_of(bad)
  (state, _), lines = restore(tmp_path)
  assert_same_bits(state, make_state(5))
  assert len(lines) == 1
  assert f'checkpoint {bad} cannot be read' in lines[0]
  assert 'using latest/5 instead' in lines[0]
  moved = tmp_path / 'checkpoints' / 'damaged' / 'latest-10'
  assert not bad.exists() and files_of(moved) == contents
  # Its step can be reached and saved again.
  save(tmp_path, (LATEST, 10, 1.0))
  assert int(restore(tmp_path)[0][0].step) == 10


def test_all_damaged_is_an_error_and_nothing_is_touched(tmp_path):
  save(tmp_path, (LATEST, 5, 1.0), (LATEST, 10, 1.0), (BEST, 5, 1.0))
  for which, step in ((LATEST, 5), (LATEST, 10), (BEST, 5)):
    truncate(tmp_path / 'checkpoints' / which / str(step))
  before = files_of(tmp_path)
  for _ in range(2):
    with pytest.raises(UserError) as error:
      restore(tmp_path)
    text = str(error.value)
    assert text.count('cannot be read') == 3 and 'Nothing was changed' in text
    assert files_of(tmp_path) == before


def test_leftovers_of_a_killed_write_are_ignored_and_removed(tmp_path):
  save(tmp_path, (LATEST, 5, 1.0))
  folder = tmp_path / 'checkpoints' / LATEST
  leftover = folder / '10.orbax-checkpoint-tmp'
  (leftover / 'params').mkdir(parents=True)
  (leftover / 'params' / 'half').write_bytes(b'half')
  (tmp_path / 'checkpoints' / 'deleted' / 'best-1').mkdir(parents=True)
  assert checkpoint.find(tmp_path, LATEST).name == '5'
  assert int(restore(tmp_path)[0][0].step) == 5
  assert leftover.exists()  # Reading changes nothing,
  save(tmp_path, (LATEST, 10, 1.0))  # writing tidies up.
  assert steps(tmp_path, LATEST) == [5, 10]
  assert not (tmp_path / 'checkpoints' / 'deleted').exists()


def test_failed_write_is_reported_and_costs_nothing_else(tmp_path, monkeypatch):
  """As on a full disk: the arrays of one checkpoint cannot be written."""
  save(tmp_path, (LATEST, 5, 1.0))
  checkpoints = Checkpoints(tmp_path)
  writer = checkpoints._writers[LATEST]

  def fail():
    type(writer).wait_until_finished(writer)
    raise OSError(28, 'No space left on device')

  assert checkpoints.save(LATEST, make_state(10), {})  # Not yet known.
  with monkeypatch.context() as patch:
    patch.setattr(writer, 'wait_until_finished', fail)
    assert not checkpoints.wait()
    assert 'No space left on device' in checkpoints.last_error
  assert 5 in steps(tmp_path, LATEST)  # Nothing was deleted for it.
  # The next write reports the failed one; once it is done, all is well.
  assert not checkpoints.save(LATEST, make_state(15), {})
  assert checkpoints.wait() and not checkpoints.last_error
  assert int(restore(tmp_path)[0][0].step) == 15
  checkpoints.close()


def test_write_that_cannot_start_is_reported(tmp_path, monkeypatch):
  checkpoints = Checkpoints(tmp_path)

  def fail(*args, **kwargs):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(checkpoints._writers[LATEST], 'save', fail)
  assert not checkpoints.save(LATEST, make_state(5), {})
  assert 'No space left on device' in checkpoints.last_error
  assert not checkpoints.wait()
  checkpoints.close()


def test_keeping_none_is_refused(tmp_path):
  with pytest.raises(UserError, match='checkpoint.keep is 0'):
    Checkpoints(tmp_path, keep=0)


@pytest.mark.parametrize(
  'read',
  [
    checkpoint.restore_params,
    lambda path: checkpoint.restore_state(path, make_state()),
  ],
)
def test_changed_arrays_are_detected(tmp_path, read):
  """By our checksums; Orbax itself notices nothing."""
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(LATEST, make_state(), {})
  assert checkpoints.wait()
  checkpoints.close()
  path = checkpoint.find(tmp_path, LATEST)
  read(path)
  meta = path / 'meta' / 'metadata'
  values = json.loads(meta.read_text())
  for name in ('checksum', 'weights_checksum'):
    values[name] ^= 1
  meta.write_text(json.dumps(sealed(values)))
  with pytest.raises(checkpoint.DamagedCheckpoint):
    read(path)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'plateau': 3}, 'plateau is 3; allowed: an object'),
    ({'plateau': {'reductions': -1}}, 'reductions is -1; allowed: a whole'),
    ({'step': 'abc'}, "step is 'abc'; allowed: a whole number from 0"),
    ({'step': -5}, 'step is -5; allowed: a whole number from 0'),
    ({'step': 1e300}, 'step is 1e.300; allowed: a whole number from 0'),
    ({'best_loss': 'x'}, "best_loss is 'x'; allowed: a number"),
    ({'best_loss': math.nan}, 'best_loss is nan; allowed: a number'),
    ({'elapsed_s': []}, r'elapsed_s is \[\]; allowed: a number'),
    ({'step': 19}, 'its metadata has step 19, its arrays 3'),
  ],
)
def test_metadata_without_a_checksum_is_checked_field_by_field(
  tmp_path, change, message
):
  """As 0.2 wrote it."""
  save(tmp_path, (LATEST, 3, 2.5))
  path = tmp_path / 'checkpoints' / LATEST / '3'
  file = path / 'meta' / 'metadata'
  meta = json.loads(file.read_text())
  del meta['meta_checksum']
  file.write_text(json.dumps(meta))
  assert checkpoint.restore_state(path, make_state())[1] == meta
  file.write_text(json.dumps(meta | change))
  with pytest.raises((UserError, DamagedCheckpoint), match=message):
    checkpoint.restore_state(path, make_state())


def test_arrays_much_larger_than_their_files_are_not_read(
  tmp_path, monkeypatch
):
  """Zeros take next to no space on disk."""
  checkpoints = Checkpoints(tmp_path)
  big = make_state(3).replace(params={'x': np.zeros(10**6, np.float32)})
  assert checkpoints.save(LATEST, big, {}) and checkpoints.wait()
  checkpoints.close()
  path = tmp_path / 'checkpoints' / LATEST / '3'
  assert checkpoint.restore_params(path)['x'].shape == (10**6,)
  with pytest.raises(DamagedCheckpoint, match='its params have 4,000,000 byt'):
    checkpoint.restore_state(path, make_state())
  monkeypatch.setattr(checkpoint, 'BYTES_ALLOWED', 0)
  with pytest.raises(DamagedCheckpoint, match='its params have 4,000,000 byt'):
    checkpoint.restore_params(path)


def test_a_pipe_in_a_checkpoint_is_named(tmp_path):
  save(tmp_path, (LATEST, 1, 2.0))
  path = checkpoint.find(tmp_path, LATEST)
  for file in [x for x in (path / 'params').rglob('*') if x.is_file()]:
    data = file.read_bytes()
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DamagedCheckpoint, match='is no file but a pipe'):
      checkpoint.restore_params(path)
    file.unlink()
    file.write_bytes(data)
