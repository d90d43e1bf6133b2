"""Launchers as real processes, and runs whose model is known in advance."""

import pathlib
import subprocess
import sys

import jax
import numpy as np

from configs import smoke
from gpt.model import GPTConfig, abstract_params
from gpt.runs.checkpoint import BEST, LATEST
from gpt.runs.checkpoint_writer import Checkpoints
from gpt.runs.config_file import save_config
from gpt.training.state import TrainState

ROOT = pathlib.Path(__file__).parents[2]
# Python's flags for processes under test: warnings are errors. Processes share
# compiled programs, and one may find an entry that another is still writing:
# JAX warns and compiles it again.
STRICT = (
  '-W',
  'error',
  '-W',
  'ignore:Error reading persistent compilation cache entry',
)


def command(name: str, *args) -> list[str]:
  """`python -m launch.NAME ARGS`, with warnings as errors."""
  return [
    sys.executable,
    *STRICT,
    '-W',  # ml_collections reads config files with it.
    'ignore:the load_module:DeprecationWarning',
    '-m',
    f'launch.{name}',
    *map(str, args),
  ]


def launch(name: str, *args, stdin: bytes = b'', code: int = 0):
  """(stdout, stderr) of a launcher, which must exit with `code`."""
  done = subprocess.run(
    command(name, *args), cwd=ROOT, input=stdin, capture_output=True
  )
  out, err = done.stdout.decode(), done.stderr.decode()
  assert done.returncode == code, f'exit code {done.returncode}\n{err}'
  assert 'Traceback' not in err, err
  return out, err


def make_run(
  workdir, tokenizer, fill, *, block_size=32, data=None, meta=None, **model
):
  """Writes a run at step 7 whose weights are `fill(name, shape)`.

  Args:
    data, model: changes to these groups of configs/smoke.py.
    meta: metadata of the checkpoints.

  Returns:
    The params, a numpy tree.
  """
  config = smoke.get_config()
  config.model.block_size = block_size
  config.model.update(model)
  config.data.update(data or {})
  cfg = GPTConfig.from_config(config.model, tokenizer.vocab_size, 'cpu')
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: np.asarray(fill(path[-1].key, x.shape), np.float32),
    abstract_params(cfg),
  )
  state = TrainState(
    step=np.asarray(7, np.int32),
    params=params,
    opt_state={'m': np.zeros(1)},
    lr_scale=np.asarray(1, np.float32),
  )
  checkpoints = Checkpoints(workdir)
  for which in (LATEST, BEST):
    assert checkpoints.save(which, state, meta or {'best_loss': 1.5})
  assert checkpoints.wait()
  checkpoints.close()
  tokenizer.save(pathlib.Path(workdir) / 'tokenizer')
  save_config(workdir, config)
  return params


def make_parrot(workdir, tokenizer, ids, **kwargs):
  """A run whose model generates `ids` in order, whatever the prompt.

  The position embedding is one-hot, the blocks add nothing, and the head maps
  position i to ids[i].
  """
  n = len(ids)

  def fill(name, shape):
    if name == 'wpe':
      return np.eye(*shape)
    out = np.zeros(shape)
    if name == 'lm_head':
      out[ids, np.arange(n)] = 50
    return out

  return make_run(
    workdir,
    tokenizer,
    fill,
    block_size=n,
    n_embd=4 * -(-n // 4),
    n_head=4,
    n_layer=1,
    **kwargs,
  )
