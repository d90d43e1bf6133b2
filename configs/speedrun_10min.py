"""The best character model for ten minutes of two CPU cores.

    python -m launch.train --config=configs/speedrun_10min.py \
      --workdir=runs/speedrun_10min
"""

from configs import speedrun_1min


def get_config():
  config = speedrun_1min.get_config()
  config.total_steps = 2700
  config.model.n_embd = 128
  config.model.n_head = 4
  config.model.n_layer = 6
  config.model.block_size = 256
  config.model.dropout = 0.1
  config.opt.muon_lr = 0.02
  config.opt.warmup_steps = 50
  config.eval.every = 270
  config.checkpoint.every = 900
  return config
