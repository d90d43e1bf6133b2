"""The best character model for an hour of two CPU cores.

    python -m launch.train --config=configs/speedrun_1h.py \
      --workdir=runs/speedrun_1h

A plan, unrun: speedrun_10min with twice the parameters, twice the tokens and
more dropout.
"""

from configs import speedrun_10min


def get_config():
  config = speedrun_10min.get_config()
  config.total_steps = 3600
  config.model.n_embd = 192
  config.model.n_head = 6
  config.model.dropout = 0.15
  config.model.dtype = 'mixed'
  config.opt.weight_decay = 0.3
  config.opt.warmup_steps = 100
  config.eval.every = 300
  config.checkpoint.every = 600
  return config
