"""The best character model for an hour of two CPU cores.

    python -m launch.train --config=configs/speedrun_1h.py \
      --workdir=runs/speedrun_1h

speedrun_10min for longer, with SwiGLU and a decay that begins almost at once.
"""

from configs import speedrun_10min


def get_config():
  config = speedrun_10min.get_config()
  config.total_steps = 7000
  config.model.mlp = 'swiglu'
  config.model.dropout = 0.12
  config.opt.decay_fraction = 0.9
  config.opt.warmup_steps = 100
  config.eval.every = 700
  config.checkpoint.every = 1750
  return config
