"""The command `rgpt`: it lists, suggests, and is `python -m launch.NAME`."""

import importlib.metadata
import importlib.util
import os
import platform
import re
import signal
import subprocess
import sys
import tomllib

import pytest

from gpt.tokenizers import CharTokenizer
from launch import __main__ as rgpt
from launch import migrating, program
from tests.support.commands import assert_refused, run_all
from tests.support.workdirs import ROOT

# As the console script that an installer writes.
SCRIPT = 'import sys\nfrom launch.__main__ import main\nsys.exit(main())\n'
HEAVY = ('jax', 'absl', 'numpy', 'ml_collections', 'yaml', 'gpt', 'configs')


def called(*commands) -> list:
  return run_all([['launch', *args] for args in commands])


def test_the_installed_command_is_this_function():
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  entry = importlib.metadata.EntryPoint(
    'rgpt', project['scripts']['rgpt'], 'console_scripts'
  )
  assert entry.load() is rgpt.main


def test_every_command_is_listed_with_what_it_does():
  bare, asked, word = called([], ['--help'], ['help'])
  assert bare.out == asked.out == word.out
  assert (bare.code, bare.err) == (0, '')
  lines = bare.out.splitlines()
  assert all(len(line) < 80 for line in lines)
  launch = ROOT / 'launch'
  modules = [*launch.glob('*.py'), *(launch / 'bench').glob('*.py')]
  found = {
    str(path.relative_to(launch).with_suffix('')).replace(os.sep, '.')
    for path in modules
    if '\n  cli.run(' in path.read_text()
  }
  assert found == set(rgpt.COMMANDS)
  for name in rgpt.COMMANDS:
    (line,) = [x for x in lines if x.startswith(f'  {name} ')]
    assert line.endswith('.') and len(line.split()) > 3


def test_the_list_needs_nothing_but_the_standard_library():
  code = (
    'import sys\nfrom launch import __main__ as rgpt\nrgpt.run(["--help"])\n'
    'rgpt.run(["trian"])\n'
    f'found = [n for n in {HEAVY} if n in sys.modules]\nassert not found, found'
  )
  subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, check=True, capture_output=True
  )


def test_a_wrong_name_is_answered_with_the_closest():
  for command, texts in zip(
    called(
      ['trian', '--config=smoke'],
      ['import-modle'],
      ['bench'],
      ['qqqq'],
      ['--iters', '1000'],
      ['--serve=0.0.0.0:80'],
      ['--wokrdir=x'],
    ),
    (
      ["unknown command 'trian'. Did you mean train?"],
      ["unknown command 'import-modle'. Did you mean import_model?"],
      ["unknown command 'bench'. Did you mean bench.train or bench.decode"],
      ["unknown command 'qqqq'. rgpt --help lists the commands"],
      ["--iters is RandyGPT's name: use rgpt train --config.total_steps=N"],
      ["--serve is RandyGPT's name: use rgpt serve --workdir=RUN --host"],
      ['--wokrdir=x without a command. rgpt --help lists'],
    ),
  ):
    assert_refused(command, *texts)
    assert command.out == ''


def test_help_and_errors_name_the_command_as_it_was_called():
  as_rgpt, asked, dashed = called(
    ['prepare_data', '--help'],
    ['help', 'prepare_data'],
    ['prepare-data', '--help'],
  )
  (as_module,) = run_all([['launch.prepare_data', '--help']])
  assert as_rgpt.out == asked.out == dashed.out
  assert as_rgpt.out.startswith('usage: rgpt prepare_data [--flag=value ...]')
  assert '\n    rgpt prepare_data --config=... --report\n' in as_rgpt.out
  assert 'python -m' not in as_rgpt.out
  assert '  --[no]report: Print the lengths' in as_rgpt.out
  assert str(ROOT) not in as_rgpt.out
  module = 'python -m launch.prepare_data'
  assert as_module.out.startswith(f'usage: {module} [--flag=value ...]')
  assert as_module.out == as_rgpt.out.replace('rgpt prepare_data', module)
  run = '--workdir=/nonexistent'
  by_name, by_module = run_all([['launch', 'info', run], ['launch.info', run]])
  assert_refused(by_name, 'Train one with `rgpt train --workdir')
  assert_refused(by_module, 'Train one with `python -m launch.train --workdir')


def test_the_version_is_that_of_the_package():
  (done,) = called(['--version'])
  assert done.out.startswith('rgpt ') and done.code == 0
  try:
    assert done.out == f'rgpt {importlib.metadata.version("rgpt")}\n'
  except importlib.metadata.PackageNotFoundError:
    assert done.out == 'rgpt unknown\n'


def test_a_command_runs_as_its_module_does(tmp_path):
  """The same streams and exit codes."""
  CharTokenizer('abc').save(tmp_path)
  for args, stdin, code in (
    ([f'--tokenizer={tmp_path}'], b'ab\xffz', 0),
    ([f'--tokenizer={tmp_path}', '--decode'], b'[2, 3]', 0),
    ([f'--tokenizer={tmp_path}', '--decode'], b'[2,', 2),
  ):
    as_rgpt, as_module = (
      subprocess.run(
        [sys.executable, *program, *args],
        cwd=ROOT,
        input=stdin,
        capture_output=True,
      )
      for program in (['-c', SCRIPT, 'tokenize'], ['-m', 'launch.tokenize'])
    )
    assert as_rgpt.returncode == as_module.returncode == code
    assert as_rgpt.stdout == as_module.stdout
    assert as_rgpt.stderr == as_module.stderr


@pytest.mark.skipif(
  platform.libc_ver()[0] != 'glibc', reason='only glibc has these tunables'
)
def test_training_starts_again_with_huge_pages():
  """`rgpt train` keeps its process id and its arguments."""
  env = {k: v for k, v in os.environ.items() if k != 'GLIBC_TUNABLES'}
  first = (
    'import os, sys\n'
    "print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), file=sys.stderr)\n"
  )
  done = subprocess.run(
    [sys.executable, '-c', first + SCRIPT, 'train', '--help'],
    cwd=ROOT,
    env=env | {'RGPT_HUGE_PAGES': '1'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0
  assert done.stdout.startswith('usage: rgpt train [--flag=value ...]')
  before, after = (line.split() for line in done.stderr.splitlines())
  assert before[0] == after[0]
  assert (before[1], after[1]) == ('None', 'glibc.malloc.hugetlb=1')


def test_a_reader_that_leaves_is_no_error():
  for args in ([], ['generate', '--help'], ['--version']):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
      [sys.executable, '-c', SCRIPT, *args],
      cwd=ROOT,
      stdout=writing,
      stderr=subprocess.PIPE,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b''), args


@pytest.mark.parametrize('form', ['rgpt', 'module'])
def test_ctrl_c_during_the_imports_is_quiet(tmp_path, form):
  """Before the command can catch it: here while absl is being imported."""
  (tmp_path / 'absl').mkdir()
  (tmp_path / 'absl' / '__init__.py').write_text(
    'import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\n'
    'time.sleep(60)\n'
  )
  program = ['-c', SCRIPT, 'info'] if form == 'rgpt' else ['-m', 'launch.info']
  done = subprocess.run(
    [sys.executable, *program],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': f'{tmp_path}:{ROOT}'},
    capture_output=True,
    text=True,
  )
  assert done.stderr == '\ninterrupted\n'
  assert done.returncode in (130, -signal.SIGINT)


# What the flags of other programs are called here


def test_a_flag_of_another_program_is_answered_with_ours():
  cases = {
    'iters': "--iters is RandyGPT's name: use --config.total_steps=N",
    'resume': "--resume is RandyGPT's and microgpt's name: use the same comm",
    'bpe': 'use --config.data.tokenizer=sentencepiece --config.data.vocab_si',
    'train-file': '--train-file is not a flag here: use --config.data.path=',
    'ckpt': '--ckpt is not a flag here: use --workdir=RUN (and --which=best',
    'generate': 'use python -m launch.generate --workdir=RUN --prompt=TEXT',
    'output': "--output is microgpt's name: use --workdir=DIRECTORY",
    'n-embd': "--n-embd is microgpt's name: use --config.model.n_embd=N",
    'n_embd': "--n_embd is microgpt's name: use --config.model.n_embd=N",
    'max_iters': "--max_iters is nanoGPT's name: use --config.total_steps=N",
  }
  done = run_all([['launch.train', f'--{flag}=3'] for flag in cases])
  for one, text in zip(done, cases.values()):
    assert_refused(one, text)
  generate, info, separate = run_all(
    [
      ['launch.generate', '--iters=3'],
      ['launch.info', '--model-dir=x'],
      ['launch.train', '--iters', '1000', '--resume'],
    ]
  )
  assert_refused(
    generate,
    "--iters is RandyGPT's name: use python -m launch.train --config.total_s",
  )
  assert_refused(info, "--model-dir is microgpt's name: use --workdir=DIREC")
  assert_refused(separate, "--iters is RandyGPT's name")


def test_every_answer_is_true(monkeypatch):
  """The flags, keys and commands in the table exist."""
  from configs import default
  from gpt.runs.config_file import flatten
  from launch import config_flag

  keys = flatten(default.get_config().to_dict())
  for name, flag in migrating.FLAGS.items():
    for word in migrating.words(flag.here):
      word, _, value = word.partition('=')
      if word == '--config':
        assert config_flag.find_config(value)
      elif word.startswith('--config.'):
        assert word.removeprefix('--config.') in keys, name
    assert flag.command in ('', *rgpt.COMMANDS), name
    command = flag.command or 'train'
    assert importlib.util.find_spec(f'launch.{command}')


def test_commands_are_renamed_only_where_they_are_commands(monkeypatch):
  monkeypatch.setitem(program._state, 'rgpt', True)
  assert program.as_called('python -m launch.train --x') == 'rgpt train --x'
  assert program.as_called('no run in launch.old') == 'no run in launch.old'
  assert program.command('bench.train') == 'rgpt bench.train'
  monkeypatch.setitem(program._state, 'rgpt', False)
  assert program.command('train') == 'python -m launch.train'


def test_the_page_for_migrants_and_the_answers_name_the_same_flags():
  page = (ROOT / 'docs' / 'migrating.md').read_text()
  _, randygpt, microgpt = re.split(r'^## From .*$', page, flags=re.M)[:3]
  microgpt = microgpt.partition('### ')[0]
  for owner, text in (('RandyGPT', randygpt), ('microgpt', microgpt)):
    column = [r.split('|')[1:-1] for r in text.splitlines() if r[:1] == '|']
    theirs = [cells[-2] for cells in column]  # The last one is ours.
    named = set(re.findall(r'--([a-z][\w-]*)', ' '.join(theirs)))
    answered = {n for n, f in migrating.FLAGS.items() if owner in f.owners}
    assert named == answered, owner
