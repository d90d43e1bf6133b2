"""Shared flags have one default and one meaning in every command."""

import inspect

from configs import default
from gpt.decoding import sampling
from tests.support.commands import JAX, run_all


def test_sampling_defaults_are_those_of_the_config_and_the_library():
  sample = default.get_config().sample
  library = {
    name: parameter.default
    for name, parameter in inspect.signature(
      sampling.settings
    ).parameters.items()
  }
  generate, chat = run_all(
    [['launch.generate', '--help'], ['launch.chat', '--help']]
  )
  for flag, name in (
    ('temperature', 'temperature'),
    ('top_p', 'top_p'),
    ('top_k', 'top_k'),
    ('min_p', 'min_p'),
    ('repetition_penalty', 'repetition'),
  ):
    assert sample.get(flag, library[name]) == library[name]
    for done in (generate, chat):
      text = done.out.partition(f'  --{flag}: ')[2].partition('\n  --')[0]
      assert f"(default: '{library[name]}')" in text, flag


def test_the_home_directory_is_expanded(tmp_path):
  """A shell leaves the ~ of --workdir=~/x alone."""
  commands = 'info', 'evaluate', 'generate', 'report', 'chat'
  for done in run_all(
    [[f'launch.{command}', '--workdir=~/absent'] for command in commands],
    preload=JAX,
    HOME=str(tmp_path),
  ):
    assert done.code == 2 and f'{tmp_path}/absent' in done.err
