"""The command line as a user meets it: real processes, a tiny launcher.

Every refusal must be short, name what was given and what is near it, exit
with 2 and show no traceback.
"""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from launch import suggest

ROOT = pathlib.Path(__file__).parents[2]

LAUNCHER = '''
"""A launcher."""
import os
import sys
import time

from absl import flags

from gpt.errors import UserError
from launch import cli, config_flag

_CONFIG = config_flag.define(DEFAULT)
_COUNT = flags.DEFINE_integer('max_tokens', 3, 'Tokens.')
_RATE = flags.DEFINE_float('temperature', 0.8, 'Temperature.')
_LOUD = flags.DEFINE_bool('stream', True, 'Stream.')
_MODE = flags.DEFINE_enum('which', 'best', ['best', 'latest'], 'Which.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of the run.')
if os.environ.get('REQUIRED'):
  flags.mark_flag_as_required('workdir')


def main(argv):
  do = os.environ.get('DO', '')
  if do == 'user_error':
    print('before')
    raise UserError('n_embd 116 is not divisible by n_head 5')
  if do == 'bug':
    raise RuntimeError('a bug')
  if do == 'sleep':
    print('ready', flush=True)
    time.sleep(60)
  if do == 'flood':
    for i in range(10**6):
      print('line', i)
  if do == 'lock':
    _CONFIG.value.new_key = 1
  if do == 'code':
    return 7
  config = _CONFIG.value
  if do == 'resume':
    config = config_flag.of_run({'lr': 0.5, 'model': {'n_embd': 7}})
  print(config and config.to_json(sort_keys=True), _COUNT.value, argv[1:])


if __name__ == '__main__':
  cli.run(main)
'''

CONFIG = """
from ml_collections import ConfigDict


def get_config(variant='none'):
  if variant not in ('none', 'big'):
    raise ValueError(f'unknown variant {variant!r}')
  c = ConfigDict()
  c.lr = 1e-4
  c.min_lr = 1e-5
  c.total_steps = 1000
  c.tensorboard = False
  c.model = ConfigDict()
  c.model.n_embd = 256 if variant == 'none' else 1024
  c.model.n_head = 8
  c.model.arch = 'randy'
  c.model.remat = True
  c.data = ConfigDict()
  c.data.path = 'auto'
  return c
"""


def launcher(default):
  return LAUNCHER.replace('DEFAULT', repr(default))


@pytest.fixture
def tree(tmp_path):
  """A launcher with and without a default config, and config files."""
  configs = tmp_path / 'configs'
  configs.mkdir()
  (configs / 'default.py').write_text(CONFIG)
  fast = 'import default\n\n\ndef get_config():\n  c = default.get_config()\n'
  fast = f'import sys\nsys.path.insert(0, {str(configs)!r})\n{fast}'
  (configs / 'fast.py').write_text(fast + '  c.lr = 1.0\n  return c\n')
  (configs / 'typo.py').write_text(fast + '  c.lrr = 1.0\n  return c\n')
  (configs / 'type.py').write_text(fast + "  c.lr = 'x'\n  return c\n")
  (configs / 'syntax.py').write_text('def get_config(:\n')
  (configs / 'empty.py').write_text('')
  (tmp_path / 'go.py').write_text(launcher('configs/default.py'))
  (tmp_path / 'bare.py').write_text(launcher(None))
  return tmp_path


def environment(**env):
  return os.environ | {'PYTHONPATH': str(ROOT)} | env


def go(tree, *args, script='go.py', **env):
  return subprocess.run(
    [sys.executable, script, *args],
    cwd=tree,
    env=environment(**env),
    capture_output=True,
    text=True,
    timeout=60,
  )


def refused(tree, *args, **kw):
  """Runs a command that must be refused; returns its one- or two-line error."""
  done = go(tree, *args, **kw)
  assert done.returncode == 2, done
  assert 'Traceback' not in done.stderr
  assert done.stderr.startswith('error: ')
  assert len(done.stderr.strip().splitlines()) <= 2, done.stderr
  return done.stderr


def test_overrides_of_every_type_in_any_order(tree):
  done = go(
    tree,
    '--config.lr=1',
    '--max_tokens=5',
    '--config.total_steps',
    '2_000',
    '--config.model.arch=micro=gpt',
    '--config.tensorboard',
    '--noconfig.model.remat',
    '--config=configs/fast.py',
    '--config.model.n_embd=64',
    '--config.data.path=',
  )
  assert done.returncode == 0, done.stderr
  assert '"lr": 1.0' in done.stdout
  assert '"total_steps": 2000' in done.stdout
  assert '"arch": "micro=gpt"' in done.stdout
  assert '"tensorboard": true' in done.stdout
  assert '"remat": false' in done.stdout
  assert '"n_embd": 64' in done.stdout
  assert '"path": ""' in done.stdout
  assert done.stdout.rstrip().endswith('5 []')


def test_default_config_is_used_and_can_be_overridden(tree):
  done = go(tree, '--config.model.remat=false', '--config.tensorboard=True')
  assert '"remat": false' in done.stdout
  assert '"tensorboard": true' in done.stdout
  assert '"lr": 0.0001' in done.stdout


def test_config_argument_reaches_get_config(tree):
  done = go(tree, '--config=configs/default.py:big')
  assert '"n_embd": 1024' in done.stdout
  error = refused(tree, '--config=configs/default.py:huge')
  assert "unknown variant 'huge'" in error


def test_no_config_where_none_is_needed(tree):
  done = go(tree, script='bare.py')
  assert done.stdout == 'None 3 []\n'
  error = refused(tree, '--config.lr=1', script='bare.py')
  assert 'needs --config=FILE' in error


@pytest.mark.parametrize(
  'args, texts',
  [
    (['--config.lrr=1'], ["'lrr'", '--config.lr', 'did you mean']),
    (['--config.n_embd=1'], ["'n_embd'", '--config.model.n_embd']),
    (['--config.model.lr=1'], ['--config.lr']),
    (['--config.zzzzzz=1'], ['keys: data.path, lr, min_lr']),
    (['--lr=1'], ['unknown flag --lr', '--config.lr']),
    (['--confg.lr=1'], ['unknown flag --confg.lr', '--config.lr']),
    (['--max_token=1'], ['unknown flag --max_token', '--max_tokens']),
    (['--qqqqqq'], ['unknown flag --qqqqqq', '--help']),
    (['--config.lr=abc'], ['--config.lr=abc', 'a number', '0.0001']),
    (['--config.lr=nan'], ['a number']),
    (['--config.lr'], ['--config.lr needs a value']),
    (['--config.model.n_embd=256.5'], ['n_embd=256.5', 'an integer', '256']),
    (['--config.total_steps=1e4'], ['an integer; write 10000']),
    (['--config.tensorboard=maybe'], ['true or false']),
    (['--noconfig.lr'], ['only a switch']),
    (['--config.model=xs'], ['is a group', '--config.model.n_head']),
    (['--config=configs/fsat.py'], ['configs/fsat.py', 'there are:']),
    (['--config'], ['--config needs a file']),
    (['--config=configs/typo.py'], ["unknown key 'lrr'", 'did you mean lr']),
    (['--config=configs/type.py'], ['configs/type.py failed: line 8', 'lr']),
    (['--config=configs/syntax.py'], ['configs/syntax.py failed', 'Syntax']),
    (['--config=configs/empty.py'], ['configs/empty.py failed', 'get_config']),
    (['--max_tokens=many'], ['--max_tokens=many: expected an integer']),
    (['--temperature=hot'], ['--temperature=hot: expected a number']),
    (['--stream=maybe'], ['--stream=maybe: expected true or false']),
    (['--stream', 'false'], ["unexpected argument 'false'", '--name=value']),
    (['--which=worst'], ['best|latest']),
  ],
  ids=lambda x: ' '.join(x)[:40],
)
def test_mistakes_are_explained(tree, args, texts):
  error = refused(tree, *args)
  for text in texts:
    assert text in error


def test_required_flag_is_named(tree):
  assert '--workdir is required' in refused(tree, REQUIRED='1')


def test_presets_are_listed_and_the_nearest_named(tree):
  error = refused(tree, '--config=configs/model_xss.py')
  assert 'Did you mean configs/model_xs.py?' in error
  for preset in ('xs', 's', 'ds', 'm', 'l', 'deep', 'xl'):
    assert f'configs/model_{preset}.py' in error


def test_config_is_found_from_any_directory(tmp_path):
  (tmp_path / 'go.py').write_text(launcher('configs/default.py'))
  done = go(tmp_path, '--config=configs/model_xs.py', '--config.lr=1e-5')
  assert done.returncode == 0, done.stderr
  assert '"n_embd": 116' in done.stdout
  assert '"lr": 1e-05' in done.stdout


def test_config_is_locked(tree):
  done = go(tree, DO='lock')
  assert done.returncode == 1
  assert 'new_key' in done.stderr


def test_user_error_is_one_line_after_the_output(tree):
  done = go(tree, DO='user_error')
  assert done.returncode == 2
  assert done.stdout == 'before\n'
  assert done.stderr == 'error: n_embd 116 is not divisible by n_head 5\n'


def test_a_bug_keeps_its_traceback(tree):
  done = go(tree, DO='bug')
  assert done.returncode == 1
  assert 'RuntimeError: a bug' in done.stderr


def test_exit_code_of_main_is_kept(tree):
  assert go(tree, DO='code').returncode == 7


def test_help_is_no_failure(tree):
  for flag in ('--help', '--helpfull', '-help'):
    done = go(tree, flag)
    assert done.returncode == 0, flag
    assert '--max_tokens' in done.stdout


def test_ctrl_c_is_quiet(tree):
  process = subprocess.Popen(
    [sys.executable, 'go.py'],
    cwd=tree,
    env=environment(DO='sleep'),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'ready\n'
  process.send_signal(signal.SIGINT)
  _, stderr = process.communicate(timeout=60)
  assert process.returncode == 130
  assert stderr == '\ninterrupted\n'


def test_a_reader_that_goes_away_is_no_error(tree):
  process = subprocess.Popen(
    [sys.executable, 'go.py'],
    cwd=tree,
    env=environment(DO='flood'),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'line 0\n'
  process.stdout.close()
  stderr = process.stderr.read()
  process.stderr.close()
  assert process.wait(timeout=60) == 141
  assert stderr == ''


def test_a_run_goes_on_with_its_own_config(tree):
  done = go(tree, '--config.model.n_head=3', DO='resume')
  assert '"lr": 0.5' in done.stdout and '"n_embd": 7' in done.stdout
  assert '"n_head": 3' in done.stdout  # The command line still wins,
  assert '"total_steps": 1000' in done.stdout  # and gaps have defaults.
  done = go(tree, '--config=configs/fast.py', DO='resume')
  assert '"lr": 1.0' in done.stdout and '"n_embd": 256' in done.stdout


def test_closest_prefers_the_right_last_part():
  names = ['lr', 'min_lr', 'opt.muon_lr', 'model.n_embd', 'model.n_head']
  assert suggest.closest('n_embd', names) == ['model.n_embd']
  assert suggest.closest('opt.lr', names)[0] == 'lr'
  assert suggest.closest('xyz', names) == []
  assert suggest.closest('xyz', []) == []
