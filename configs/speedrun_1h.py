"""The best character model for up to an hour of two CPU cores.

    rgpt train --config=speedrun_1h --workdir=runs/speedrun_1h

speedrun_10min for longer, with SwiGLU and a decay that begins almost at once:
1.59M parameters. 2 cores of an AMD EPYC (Zen 5): 25 minutes from a cold start,
compilation included (32 while other work was running), 28.7M tokens, 1.3964 +-
0.0075 nats/char (full pass, mean of seeds 1, 2, 3: 1.3993, 1.4020, 1.3879).
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
