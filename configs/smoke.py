"""Seconds, for tests: 2 layers x 32, 4 heads, context 32, 20 steps.

    rgpt train --config=smoke --workdir=runs/smoke

30 thousand parameters on the built-in sample. The loss means nothing yet.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.lr = 3e-3
  config.min_lr = 3e-4
  config.batch_size = 8
  config.total_steps = 20
  config.model.n_embd = 32
  config.model.n_head = 4
  config.model.n_layer = 2
  config.model.block_size = 32
  config.model.dtype = 'float32'  # The same numbers on every processor.
  config.data.path = 'sample'
  config.eval.every = 5
  config.eval.windows = 8
  config.eval.full_at_end = False
  config.checkpoint.every = 5
  config.sample.max_tokens = 40
  return config
