"""nanoGPT's GPU setting, 10.7M parameters, with what pays on a CPU.

    rgpt train --config=shakespeare_gpu --workdir=runs/shakespeare_gpu

6 layers x 384, 6 heads, context 256, 64 x 256 tokens a step, dropout 0.2, as in
nanoGPT's recipe (1.4697 nats/char there). The options and learning rates are
those of speedrun_10min, extrapolated. 41M tokens at 2.9M tokens/s: 37 s on an
H200, most of it compilation. The best checkpoint has 1.4699; the run overfits,
and the final one has 1.92 in the full pass. A step is 36 times the work of a
step of speedrun_10min (0.125 s on two CPU cores).
"""

from configs import speedrun_10min


def get_config():
  config = speedrun_10min.get_config()
  config.batch_size = 64
  config.total_steps = 2500
  config.model.n_embd = 384
  config.model.n_head = 6
  config.model.dropout = 0.2
  config.model.dtype = 'auto'
  config.opt.warmup_steps = 100
  config.eval.every = 250
  config.checkpoint.every = 500
  return config
