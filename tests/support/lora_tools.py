"""Runs with random adapters, without training them."""

import json
import pathlib
import shutil

import jax
import numpy as np

from gpt.runs import base
from gpt.runs.checkpoint import BEST
from gpt.runs.checkpoint_writer import Checkpoints
from gpt.runs.load import load_model
from gpt.training import lora
from gpt.training.state import TrainState


def write_adapters(workdir, whole, seed=0, step=3, std=0.5, targets='all'):
  """Makes a LoRA run of the run `whole`, or gives one new adapters."""
  workdir, whole = pathlib.Path(workdir), pathlib.Path(whole)
  workdir.mkdir(exist_ok=True)
  config = json.loads((whole / 'config.json').read_text())
  config['opt'] |= {
    'lora_rank': 2,
    'lora_alpha': 8.0,
    'lora_targets': targets,
  }
  (workdir / 'config.json').write_text(json.dumps(config))
  shutil.copytree(
    whole / 'tokenizer', workdir / 'tokenizer', dirs_exist_ok=True
  )
  loaded = load_model(whole)
  base.record(workdir, str(whole), base.fingerprint(loaded.cfg, loaded.params))
  rng = np.random.default_rng(seed)
  adapters = jax.tree.map(
    lambda x: rng.normal(0, std, x.shape).astype(np.float32),
    lora.abstract(lora.adapted(loaded.model, config['opt'])),
  )
  state = TrainState(
    step=np.asarray(step, np.int32),
    params=adapters,
    opt_state={'m': np.zeros(1)},
    lr_scale=np.asarray(1, np.float32),
  )
  checkpoints = Checkpoints(workdir)
  checkpoints.save(BEST, state, {'best_loss': 2.0 - step / 10})
  assert checkpoints.wait()
  checkpoints.close()
