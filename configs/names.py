"""A name generator: one document per line, microgpt's quick test done well.

    curl -O \
      https://raw.githubusercontent.com/karpathy/makemore/master/names.txt
    python -m launch.train --config=configs/names.py --workdir=runs/names
    python -m launch.generate --workdir=runs/names --num_samples=20 \
      --temperature=0.5
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
