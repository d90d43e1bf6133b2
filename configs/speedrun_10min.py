"""The best character model for ten minutes of two CPU cores.

    python -m launch.train --config=configs/speedrun_10min.py \
      --workdir=runs/speedrun_10min

2 cores of an AMD EPYC (Zen 5): 9 min 10 s from a cold start, compiling
included, 11.1M tokens, 1.4484 +- 0.0038 nats/char (full pass, mean of seeds 42,
1, 2: 1.4450, 1.4479, 1.4524). nanoGPT's GPU recipe with nine times the
parameters is at 1.4697.
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
