"""The best character model for ten minutes of two CPU cores.

    rgpt train --config=speedrun_10min --workdir=runs/speedrun_10min

6 layers x 128, 4 heads, context 256: 1.20M parameters. 2 cores of an AMD EPYC
(Zen 5): 8 min 20 s from a cold start, compilation included, 15.6M tokens,
1.4185 +- 0.0031 nats/char (full pass, mean of seeds 1, 2, 3: 1.4188, 1.4152,
1.4215). nanoGPT's GPU recipe, with nine times the parameters, reaches 1.4697.
Not tried on a processor without bfloat16 instructions; should it be slow there,
add --config.model.dtype=float32.
"""

from configs import speedrun_1min


def get_config():
  config = speedrun_1min.get_config()
  config.total_steps = 3800
  config.model.n_embd = 128
  config.model.n_head = 4
  config.model.n_layer = 6
  config.model.block_size = 256
  config.model.dropout = 0.1
  config.model.dtype = 'mixed'
  config.opt.muon_lr = 0.02
  config.opt.weight_decay = 0.2
  config.opt.warmup_steps = 50
  config.eval.every = 380
  config.checkpoint.every = 1900
  return config
