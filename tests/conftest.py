"""What every test shares: JAX on the CPU, as several devices, and strict.

What a user's environment says to the programs under test is taken away first.

Four fake devices in one process stand for a machine with four accelerators.
Compiled programs are kept for the session in a temporary directory that the
processes under test are pointed at too: they compile the same few programs.
"""

import os
import signal
import tempfile

for _name in list(os.environ):
  if _name.lower() in ('http_proxy', 'https_proxy', 'all_proxy', 'inputrc') or (
    _name.startswith(('RGPT_API', 'OPENAI_', 'JAX_COORDINATOR', 'JAX_PROCESS_'))
  ):
    del os.environ[_name]
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
_COMPILED = tempfile.TemporaryDirectory(prefix='rgpt-test-compiled-')
os.environ['JAX_COMPILATION_CACHE_DIR'] = _COMPILED.name
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  # A background job of a shell ignores Ctrl-C, and so would the processes
  # under test.
  signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

from gpt import devices  # noqa: E402

# The same examples every time, however long one takes on a busy machine.
hypothesis.settings.register_profile(
  'rgpt',
  deadline=None,
  derandomize=True,
  suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile('rgpt')
pytest.register_assert_rewrite(
  'tests.support.engine_tools', 'tests.support.train_process'
)
jax.config.update('jax_num_cpu_devices', 4)
devices.enable_compilation_cache()  # Or off, where it is not safe.
jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(scope='session')
def trained_workdir(tmp_path_factory):
  """The workdir of a tiny model trained for 20 steps; not to be changed."""
  from configs import smoke
  from gpt.train import train_and_evaluate

  config = smoke.get_config()
  config.eval.full_at_end = True
  config.parallel.num_cpu_devices = 4
  workdir = tmp_path_factory.mktemp('trained') / 'run'
  train_and_evaluate(config, workdir, log=lambda *_, **__: None)
  return workdir


@pytest.fixture(scope='session')
def reference(tmp_path_factory):
  """A finished run and what it printed; not to be changed."""
  from tests.support.train_process import train
  from tests.support.train_runs import ARGS

  workdir = tmp_path_factory.mktemp('reference') / 'run'
  out, err = train(workdir, *ARGS)
  assert err == ''
  return workdir, out


@pytest.fixture(scope='session')
def server(tmp_path_factory):
  """A real server process of a tiny chat model with random weights."""
  from tests.support.serving_tools import chat_tokenizer, make_random, serving

  workdir = tmp_path_factory.mktemp('server') / 'random'
  make_random(workdir, chat_tokenizer())
  with serving(workdir) as server:
    yield server
