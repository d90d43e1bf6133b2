"""RandyGPT's `l`: 6 layers x 256, 8 heads; 4.818M parameters at V=67.

    rgpt train --config=model_l --workdir=runs/l

2 cores of an AMD EPYC (Zen 5): 7,378 tokens/s at batch 16, so the 1,000 steps
(16.4M tokens) are some 37 minutes. tinyshakespeare: 2.5750 nats/char after 100
steps (full pass); RandyGPT reports 2.3716 after 929. With lr 1e-3 this model is
at 1.78 after 500 steps.

RandyGPT's own hyperparameters (lr 1e-4 to 1e-5, weight decay 0.1, dropout 0.1),
kept for comparison. The recipes learn far faster.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.model.n_embd = 256
  config.model.n_head = 8
  config.model.n_layer = 6
  return config
