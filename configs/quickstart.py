"""The first run: about a minute on two CPU cores, to a readable sample.

    make train

Takes train.txt if it is there, else tinyshakespeare, else the built-in sample.
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
