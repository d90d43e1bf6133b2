"""The first run: one or two minutes on two CPU cores, to a readable sample.

    rgpt train --config=quickstart --workdir=runs/quickstart    (or: make train)

4 layers x 128, 4 heads, context 128: 0.82M parameters. Takes train.txt if there
is one, else tinyshakespeare, else the built-in sample. For losses see the
speedruns.
"""

from configs import shakespeare_char


def get_config():
  config = shakespeare_char.get_config()
  config.total_steps = 600
  config.model.n_layer = 4
  config.model.block_size = 128
  config.model.dropout = 0.0
  config.opt.warmup_steps = 60
  config.data.path = 'auto'
  config.eval.every = 50
  config.checkpoint.every = 200
  return config
