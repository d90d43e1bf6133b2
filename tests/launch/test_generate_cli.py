"""`launch.generate` as a user meets it: real processes, streams and signals."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from gpt.decoding import sampling
from gpt.decoding.prompt import complete
from gpt.runs.load import load_model
from gpt.tokenizers import build_tokenizer
from tests.support.commands import JAX, assert_refused, run_all
from tests.support.workdirs import ROOT, command, launch, make_parrot

EMOJI = 'a🙂b👩‍👩‍👧‍👦 é 世界🇩🇪\n\u0301z'


def expected(workdir, prompt: str, n: int = 200, window='slide', **kwargs):
  """The library's result for the same request."""
  loaded = load_model(workdir)
  settings = sampling.settings(1, **{'seed': 42, **kwargs})
  text = complete(
    loaded.model, loaded.params, loaded.tokenizer, prompt, settings, n, window
  )
  return ''.join(text)


def with_newline(text: str) -> str:
  return text if text.endswith('\n') else text + '\n'


@pytest.fixture(scope='module')
def parrot(tmp_path_factory):
  """A run whose model says EMOJI in tokens of one byte each, then EOS."""
  workdir = tmp_path_factory.mktemp('parrot')
  text = ['the quick brown fox jumps over the lazy dog\n'] * 20
  tokenizer = build_tokenizer('sentencepiece', text, 300)
  ids = tokenizer.encode(EMOJI).tolist()
  assert len(ids) > len(EMOJI) + 20  # Most characters are several tokens.
  make_parrot(workdir, tokenizer, [*ids, tokenizer.eos_id])
  return workdir


def test_defaults_continue_the_prompt_and_say_only_the_completion(
  trained_workdir,
):
  prompt = 'ROMEO:'
  out, err = launch(
    'generate',
    f'--workdir={trained_workdir}',
    f'--prompt={prompt}',
    stdin=b'not the prompt',
  )
  assert 'note: stdin is not read; --prompt_file=- takes the prompt' in err
  assert out == with_newline(expected(trained_workdir, prompt))
  assert 'randygpt-2L-4H-32D, best checkpoint, step' in err
  assert '200 tokens; the first after' in err


SAMPLING = dict(top_k=12, min_p=0.01, temperature=1.2, top_p=0.95)


@pytest.fixture(scope='module')
def done(trained_workdir, tmp_path_factory):
  """{name: how it ended} of commands that print samples."""
  path = tmp_path_factory.mktemp('done')
  (path / 'prompt.txt').write_bytes('\ufeffO \u2603y\r\nmy'.encode())
  damaged = shutil.copytree(trained_workdir, path / 'run')
  (best,) = (damaged / 'checkpoints' / 'best').iterdir()
  shutil.rmtree(best / 'params')
  workdir = f'--workdir={trained_workdir}'
  commands = {
    'several': [
      workdir,
      '--prompt=First',
      '--prompt=',
      f'--prompt_file={path}/prompt.txt',
      '--num_samples=2',
      '--seed=7',
      '--max_tokens=50',
      '--repetition_penalty=1.1',
      '--window=exact',
      '--show_prompt',
      *(f'--{k}={v}' for k, v in SAMPLING.items()),
    ],
    'long': [
      workdir,
      '--prompt_file=-',
      '--temperature=0',
      '--max_tokens=40',
      '--which=latest',
    ],
    'damaged': [f'--workdir={damaged}', '--prompt=\u2603', '--max_tokens=5'],
  }
  ended = run_all(
    [['launch.generate', *args] for args in commands.values()],
    stdin=[b'', b'my lord, ' * 20 + b'\xff', b''],
    preload=JAX,
  )
  for one in ended:
    assert one.code == 0, one.err
  return dict(zip(commands, ended))


def test_several_prompts_and_samples_are_told_apart(trained_workdir, done):
  """From flags, an empty one, and a file as training would read it."""
  wanted = ''
  for i, prompt in enumerate(['First', '', 'O \u2603y\nmy']):
    for j in range(2):
      completion = expected(
        trained_workdir,
        prompt,
        50,
        'exact',
        seed=7 + j,
        repetition=1.1,
        **SAMPLING,
      )
      wanted += f'--- prompt {i + 1} of 3, sample {j + 1} of 2, '
      wanted += f'seed {7 + j} ---\n' + with_newline(prompt + completion)
  assert done['several'].out == wanted
  err = done['several'].err
  assert "'\u2603' x1" in err
  assert 'nothing is left' not in err


def test_a_prompt_longer_than_the_window_comes_through_a_pipe(done):
  assert len(done['long'].out) >= 40
  err = done['long'].err
  assert 'warning: - is not UTF-8' in err
  assert "'\ufffd' x1" in err


def test_a_damaged_best_is_passed_over_with_a_warning(done):
  assert len(done['damaged'].out.rstrip('\n')) <= 5
  err = done['damaged'].err
  assert 'warning: checkpoint' in err
  assert 'latest checkpoint, step 20' in err
  assert 'nothing is left of the prompt' in err


READS_STDIN = """
import os, sys
from launch.generate import stdin_has_data

for fd in map(int, sys.argv[1:]):
  os.dup2(fd, 0)
  print(stdin_has_data())
"""


def test_a_text_on_stdin_is_noticed_and_silence_never_blocks(tmp_path):
  (tmp_path / 'text').write_text('ROMEO:')
  (tmp_path / 'empty').touch()
  reading, writing = os.pipe()  # Open and silent, as under a service manager.
  full, end = os.pipe()
  os.write(end, b'ROMEO:')
  noticed = {
    os.open(tmp_path / 'text', os.O_RDONLY): True,
    os.open(tmp_path / 'empty', os.O_RDONLY): False,
    os.open(os.devnull, os.O_RDONLY): False,
    full: True,
    reading: False,
  }
  out = subprocess.check_output(
    [sys.executable, '-c', READS_STDIN, *map(str, noticed)],
    cwd=ROOT,
    pass_fds=list(noticed),
    text=True,
  )
  assert out.splitlines() == [str(found) for found in noticed.values()]
  for fd in (*noticed, writing, end):
    os.close(fd)


def test_text_streams_in_whole_characters(parrot):
  """Each write of the process is valid UTF-8 by itself; EOS ends it."""
  process = subprocess.Popen(
    command('generate', f'--workdir={parrot}', '--prompt=', '--temperature=0'),
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
  )
  pieces = []
  # A pipe may join writes but does not split ones as short as these.
  while piece := os.read(process.stdout.fileno(), 65536):
    pieces.append(piece.decode('utf-8'))
  process.stdout.close()
  assert process.wait() == 0
  assert ''.join(pieces) == EMOJI + '\n'


def test_a_terminal_of_another_encoding_is_no_crash(parrot, monkeypatch):
  monkeypatch.setenv('PYTHONIOENCODING', 'latin-1')
  done = subprocess.run(
    command('generate', f'--workdir={parrot}', '--temperature=0'),
    cwd=ROOT,
    capture_output=True,
  )
  assert done.returncode == 0
  assert done.stdout == (EMOJI + '\n').encode('latin-1', 'replace')


def test_ctrl_c_stops_and_keeps_what_was_printed(trained_workdir):
  process = subprocess.Popen(
    command(
      'generate',
      f'--workdir={trained_workdir}',
      '--prompt=The ',
      '--max_tokens=100000000',
    ),
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )
  out = b''
  while len(out) < 300:
    piece = os.read(process.stdout.fileno(), 65536)
    assert piece, process.communicate()
    out += piece
  process.send_signal(signal.SIGINT)
  rest, err = process.communicate()
  assert process.returncode == 130
  assert b'interrupted' in err and b'Traceback' not in err
  text = (out + rest).decode()
  assert text[:250] == expected(trained_workdir, 'The ', 300)[:250]


BUSY = """
import jax
from launch import cli

def main(_):
  step = lambda i, x: jax.numpy.tanh(x @ x)
  hours = jax.jit(lambda x: jax.lax.fori_loop(0, 10**9, step, x))
  hours(jax.numpy.ones((64, 64)))  # Returns at once, and computes.
  raise KeyboardInterrupt

cli.run(main)
"""


def test_ctrl_c_does_not_wait_for_the_device():
  """Nor does the process crash by taking memory away under a computation."""
  done = subprocess.run(
    [sys.executable, '-c', BUSY],
    cwd=ROOT,
    capture_output=True,
    timeout=250,  # It computes for hours.
  )
  assert done.returncode == 130, done.stderr.decode()


def test_a_reader_that_leaves_ends_it_quietly(trained_workdir):
  process = subprocess.Popen(
    command(
      'generate', f'--workdir={trained_workdir}', '--max_tokens=100000000'
    ),
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )
  os.read(process.stdout.fileno(), 10)
  process.stdout.close()
  err = process.stderr.read()
  process.stderr.close()
  assert process.wait() == 141
  assert b'Error' not in err and b'Traceback' not in err


def test_mistakes_are_explained(trained_workdir):
  workdir = f'--workdir={trained_workdir}'
  cases = {
    '--workdir=DIRECTORY of a trained run is needed': [],
    'temperature nan is not': [workdir, '--temperature=nan'],
    'cannot read --prompt_file=absent: No such file': [
      workdir,
      '--prompt_file=absent',
    ],
    'the prompt has 36 tokens; with window=stop at most the context of 32 '
    'fits': [
      workdir,
      '--window=stop',
      '--prompt=' + 'a b ' * 9,
    ],
  }
  done = run_all(
    [['launch.generate', *args] for args in cases.values()], preload=JAX
  )
  for one, message in zip(done, cases):
    assert_refused(one, f'error: {message}')
    assert one.out == ''


def test_bfloat16_without_the_kernels_is_refused(trained_workdir):
  args = [f'--workdir={trained_workdir}', '--precision=bfloat16']
  (done,) = run_all(
    [['launch.generate', *args]], preload=JAX, RGPT_KERNELS='off'
  )
  assert_refused(done, 'need the compiled kernels: RGPT_KERNELS is off')
