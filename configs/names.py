"""A name generator, one document per line: microgpt's quick test, larger.

    curl -O \
      https://raw.githubusercontent.com/karpathy/makemore/master/names.txt
    rgpt train --config=names --workdir=runs/names
    rgpt generate --workdir=runs/names --num_samples=20 --temperature=0.5

4 layers x 64, 4 heads, context 16: 0.20M parameters. 2 cores of an AMD EPYC
(Zen 5): 66 s, 1.9659 nats/char with the end of the name counted (full pass over
the held-out 10 % of 32,033 names).
"""

from configs import default


def get_config():
  config = default.get_config()
  config.lr = 4e-3
  config.min_lr = 0.0
  config.batch_size = 128
  config.total_steps = 4000
  config.model.arch = 'microgpt'
  config.model.n_embd = 64
  config.model.n_head = 4
  config.model.n_layer = 4
  config.model.block_size = 16
  config.model.dropout = 0.1
  config.opt.schedule = 'linear_warmup'
  config.opt.warmup_steps = 200
  config.opt.b1 = 0.85
  config.opt.b2 = 0.99
  config.opt.weight_decay = 0.0
  config.opt.clip = 'none'
  config.opt.plateau_patience = 0
  config.data.path = 'names.txt'
  config.data.format = 'lines'
  config.eval.every = 250
  config.eval.windows = 1000
  config.checkpoint.every = 1000
  config.sample.prompt = ''
  config.sample.max_tokens = 16
  return config
