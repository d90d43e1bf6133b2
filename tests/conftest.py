"""Setup that every test shares: JAX on four CPU devices, with strict checks.

The four devices of one process stand in for a machine with four accelerators.
Variables of the user's environment that would change a program under test are
removed first.

All processes of a session, workers and programs under test alike, share one
directory of compiled programs: RGPT_TEST_COMPILED if it is set (.ci/run sets it
for several sessions), else a temporary one. With jax 0.5 the compilation cache
stays off (see gpt/devices.py).
"""

import contextlib
import os
import pathlib
import signal
import tempfile

for _name in list(os.environ):
  if _name.lower() in ('http_proxy', 'https_proxy', 'all_proxy', 'inputrc') or (
    _name.startswith(('RGPT_API', 'OPENAI_', 'JAX_COORDINATOR', 'JAX_PROCESS_'))
  ):
    del os.environ[_name]
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
if not os.environ.get('RGPT_TEST_COMPILED'):
  # Workers of pytest-xdist inherit the variable, so this is the first process,
  # which also ends last.
  _COMPILED = tempfile.TemporaryDirectory(prefix='rgpt-test-compiled-')
  os.environ['RGPT_TEST_COMPILED'] = _COMPILED.name
os.environ['JAX_COMPILATION_CACHE_DIR'] = os.environ['RGPT_TEST_COMPILED']
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  # Background jobs of a shell ignore Ctrl-C, and the processes under test would
  # inherit that.
  signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

from gpt import devices  # noqa: E402
from gpt.kernels import library  # noqa: E402
from gpt.native import build, training  # noqa: E402

# The same examples every time, without a deadline: the machine may be busy.
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
if (
  library.load() or training.load()
):  # Compiles now, so that no program under test says so,
  os.environ['RGPT_KERNELS'] = 'off'
else:  # not even one with a HOME of its own.
  os.environ.setdefault('RGPT_KERNELS_DIR', str(build.cache_directory()))


@pytest.fixture(scope='session')
def once(tmp_path_factory):
  """`once(name, make)`: a path that the first worker to ask makes for all.

  `make(path)` fills it; nobody may change it afterwards.
  """
  root = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    root = root.parent  # Shared by the workers.

  def get(name, make) -> pathlib.Path:
    path = root / f'once-{name}'
    with locked(root / f'once-{name}.lock'):
      if not (path / 'made').exists():
        assert not path.exists(), f'another worker failed to make {name!r}'
        path.mkdir()
        make(path)
        (path / 'made').touch()
    return path

  return get


@contextlib.contextmanager
def locked(path):
  """Waits until no other process holds the lock."""
  import fcntl

  with open(path, 'w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


@pytest.fixture(scope='session')
def trained_workdir(once):
  """The workdir of a tiny model trained for 20 steps; not to be changed."""
  from configs import smoke
  from gpt.train import train_and_evaluate

  def make(path):
    config = smoke.get_config()
    config.eval.full_at_end = True
    config.parallel.num_cpu_devices = 4
    train_and_evaluate(config, path / 'run')

  return once('trained', make) / 'run'


@pytest.fixture(scope='session')
def reference(once):
  """(workdir, stdout) of a finished run; not to be changed."""
  from tests.support.train_process import train
  from tests.support.train_runs import ARGS

  def make(path):
    out, err = train(path / 'run', *ARGS)
    assert err == ''
    (path / 'stdout').write_text(out)

  path = once('reference', make)
  return path / 'run', (path / 'stdout').read_text()


@pytest.fixture(scope='session')
def server(tmp_path_factory):
  """A real server process for a tiny chat model with random weights."""
  from tests.support.serving_tools import chat_tokenizer, make_random, serving

  workdir = tmp_path_factory.mktemp('server') / 'random'
  make_random(workdir, chat_tokenizer())
  with serving(workdir) as server:
    yield server
