"""Seven minutes of two CPU cores: the `randy` architecture with a sane recipe.

    python -m launch.train --config=configs/shakespeare_char.py \
      --workdir=runs/shakespeare        (or: make shakespeare)

RandyGPT trains this architecture at lr 1e-4 without warmup and stops at 2.37
nats/char. Thirty times the learning rate, reached by a short warmup, and a
decay over the last 40 % of the steps are nearly all of the difference.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.lr = 3e-3
  config.min_lr = 1e-4
  config.batch_size = 16
  config.total_steps = 2200
  config.model.n_embd = 128
  config.model.n_head = 4
  config.model.n_layer = 6
  config.model.dropout = 0.05
  config.opt.schedule = 'wsd'
  config.opt.warmup_steps = 100
  config.opt.b2 = 0.99
  config.opt.plateau_patience = 0
  config.data.path = 'shakespeare'
  config.eval.every = 100
  config.checkpoint.every = 500
  return config
