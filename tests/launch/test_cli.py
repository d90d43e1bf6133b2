"""The command line as a user meets it: real processes, a tiny launcher.

Every refusal is short, names what was given and what is near it, exits with 2
and shows no traceback.
"""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from launch import suggest
from tests.support.commands import assert_refused, run_all

ROOT = pathlib.Path(__file__).parents[2]
PATIENCE = 120  # Seconds after which something is broken, not slow.

LAUNCHER = '''
"""A launcher."""
import os
import sys
import time

from absl import flags

from gpt.errors import UserError
from launch import cli, common_flags, config_flag

_CONFIG = config_flag.define(DEFAULT)
_COUNT = flags.DEFINE_integer('max_tokens', 3, 'Tokens.')
_RATE = flags.DEFINE_float('temperature', 0.8, 'Temperature.')
_LOUD = flags.DEFINE_bool('stream', True, 'Stream.')
_MODE = flags.DEFINE_enum('which', 'best', ['best', 'latest'], 'Which.')
_WORKDIR = common_flags.workdir()
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


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
  """A launcher with and without a default config, and config files."""
  tmp_path = tmp_path_factory.mktemp('tree')
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
  (tmp_path / 'data.txt').write_text('not Python')
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
    timeout=PATIENCE,
  )


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


def test_a_default_config_can_be_overridden_and_takes_an_argument(tree):
  overridden, big, bare = run_all(
    [
      ['go.py', '--config.model.remat=false', '--config.tensorboard=True'],
      ['go.py', '--config=configs/default.py:big'],
      ['bare.py'],
    ],
    cwd=tree,
  )
  assert '"remat": false' in overridden.out
  assert '"tensorboard": true' in overridden.out
  assert '"lr": 0.0001' in overridden.out
  assert '"n_embd": 1024' in big.out
  assert bare.out == 'None 3 []\n'


MISTAKES = [
  (['--config.lrr=1'], ["'lrr'", '--config.lr', 'did you mean']),
  (['--config.n_embd=1'], ["'n_embd'", '--config.model.n_embd']),
  (['--config.model.lr=1'], ['--config.lr']),
  (['--config.zzzzzz=1'], ['keys: data.path, lr, min_lr']),
  (['--lr=1'], ["--lr is RandyGPT's and microgpt's name: use --config.lr=X"]),
  (['--lrr=1'], ['unknown flag --lrr', '--config.lr']),
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
  (['--max_tokens'], ['--max_tokens needs a value: --max_tokens=...']),
  (['--flagfile=absent'], ["cannot read --flagfile='absent': No such file"]),
  ([f'--workdir={300 * "x"}'], ['--workdir=xxx', 'File name too long']),
  (['--workdir=data.txt/run'], ['--workdir=data.txt/run: Not a directory']),
  (['--max_tokens=many'], ['--max_tokens=many: expected an integer']),
  (['--temperature=hot'], ['--temperature=hot: expected a number']),
  (['--stream=maybe'], ['--stream=maybe: expected true or false']),
  (['--stream', 'false'], ["unexpected argument 'false'", '--name=value']),
  (['--which=worst'], ['best|latest']),
  (['--config=configs/default.py:huge'], ["unknown variant 'huge'"]),
  (['--config=xs'], ["no preset 'xs'. Did you mean model_xs?"]),
  (['--config=speedrun'], ['Did you mean speedrun_1h?']),
  (['--config=configs/xs.py'], ['Did you mean configs/model_xs.py?']),
  (['--config=configs/model_xss.py'], ['Did you mean configs/model_xs.py?']),
  (['--config=data.txt'], ["config file 'data.txt' is not a Python file"]),
  (['--config=configs'], ["config file 'configs' is not a Python file"]),
  (['--config=qqqqqq'], ["no preset 'qqqqqq'.\n", ' model_xs,']),
  (['--max-tokens=many'], ['--max_tokens=many: expected an integer']),
  (['--config.total-steps=many'], ['--config.total_steps=many']),
]


@pytest.fixture(scope='module')
def answers(tree):
  """{arguments: Done} of every mistake."""
  done = run_all([['go.py', *args] for args, _ in MISTAKES], cwd=tree)
  return {tuple(args): one for (args, _), one in zip(MISTAKES, done)}


@pytest.mark.parametrize(
  'args, texts', MISTAKES, ids=lambda x: ' '.join(x)[:40]
)
def test_mistakes_are_explained(answers, args, texts):
  assert_refused(answers[tuple(args)], *texts)


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full')
def test_a_full_disk_under_stdout_is_named(tree):
  for args, env in (([], {}), (['--help'], {}), ([], {'DO': 'flood'})):
    with open('/dev/full', 'w') as full:
      done = subprocess.run(
        [sys.executable, 'go.py', *args],
        cwd=tree,
        env=environment(**env),
        stdout=full,
        stderr=subprocess.PIPE,
        text=True,
      )
    assert done.returncode == 2
    assert done.stderr == (
      'error: cannot write the output: No space left on device\n'
    )


def test_what_is_missing_is_named(tree):
  (bare,) = run_all([['bare.py', '--config.lr=1']], cwd=tree)
  assert_refused(bare, 'needs --config=FILE')
  (required,) = run_all([['go.py']], cwd=tree, REQUIRED='1')
  assert_refused(required, '--workdir is required')


def test_a_preset_is_found_by_path_or_name_from_any_directory(tmp_path):
  (tmp_path / 'go.py').write_text(launcher('configs/default.py'))
  path, name, variant = run_all(
    [
      ['go.py', '--config=configs/model_xs.py', '--config.lr=1e-5'],
      ['go.py', '--config=model_xs'],
      ['go.py', '--config=model_xs:large'],
    ],
    cwd=tmp_path,
  )
  assert '"n_embd": 116' in path.out and '"lr": 1e-05' in path.out
  assert '"n_embd": 116' in name.out and '"lr": 0.0001' in name.out
  # get_config() of a preset takes no argument: it was handed over.
  assert_refused(variant, 'model_xs failed: ', 'positional argument')


def test_a_dash_does_for_an_underscore(tree):
  done, word = run_all(
    [
      [
        'go.py',
        '--max-tokens=7',
        '--config.total-steps=3',
        '--config.tensorboard',
      ],
      ['go.py', '--', '--max-tokens'],
    ],
    cwd=tree,
  )
  assert '"total_steps": 3' in done.out and done.out.endswith(' 7 []\n')
  assert_refused(word, "unexpected argument '--max-tokens'")


def test_the_end_of_main_is_the_end_of_the_process(tree):
  """An exit code is kept; a UserError is one line; a bug has its traceback."""
  assert go(tree, DO='code').returncode == 7
  done = go(tree, DO='user_error')
  assert (done.returncode, done.stdout) == (2, 'before\n')
  assert done.stderr == 'error: n_embd 116 is not divisible by n_head 5\n'
  done = go(tree, DO='bug')
  assert done.returncode == 1 and 'RuntimeError: a bug' in done.stderr
  done = go(tree, DO='lock')
  assert done.returncode == 1 and 'new_key' in done.stderr


def test_help_is_a_result_and_no_failure(tree):
  for done in run_all(
    [['go.py', flag] for flag in ('--help', '-h', '-help', '--helpfull')],
    cwd=tree,
  ):
    assert (done.code, done.err) == (0, '')
    assert '--max_tokens' in done.out
    if '--flagfile' not in done.out:  # Not all of absl's.
      assert done.out.startswith('usage: go.py [--flag=value ...]\n\nA launc')


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
  _, stderr = process.communicate(timeout=PATIENCE)
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
  assert process.wait(timeout=PATIENCE) == 141
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
