"""The best character model for a minute of two CPU cores.

    rgpt train --config=speedrun_1min --workdir=runs/speedrun_1min

4 layers x 96, 3 heads, context 128: 0.46M parameters. 2 cores of an AMD EPYC
(Zen 5): 53 s from a cold start, compilation included, 2.36M tokens, 1.5526 +-
0.0090 nats/char (full pass, mean of seeds 1, 2, 3: 1.5523, 1.5437, 1.5617).
docs/results.md lists what was tried on the way.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.lr = 5e-3
  config.min_lr = 0.0
  config.batch_size = 16
  config.total_steps = 1150
  config.model.n_embd = 96
  config.model.n_head = 3
  config.model.n_layer = 4
  config.model.block_size = 128
  config.model.dropout = 0.0
  config.model.pos = 'rope'
  config.model.qk_norm = True
  config.model.final_norm = True
  config.model.logit_softcap = 15.0
  config.model.zero_init = True
  config.opt.name = 'muon'
  config.opt.muon_lr = 0.03
  config.opt.muon_momentum = 0.9
  config.opt.schedule = 'wsd'
  config.opt.decay_fraction = 0.6
  config.opt.warmup_steps = 20
  config.opt.b2 = 0.99
  config.opt.weight_decay = 0.01
  config.opt.plateau_patience = 0
  config.data.path = 'shakespeare'
  config.eval.every = 230
  config.checkpoint.every = 1150
  return config
