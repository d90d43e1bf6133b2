"""RandyGPT's `s`: 8 layers x 128, 4 heads; 1.623M parameters at V=67.

    rgpt train --config=model_s --workdir=runs/s

2 cores of an AMD EPYC (Zen 5): 16,281 tokens/s at batch 16, so the 1,000 steps
(16.4M tokens) are some 17 minutes. No full run has been recorded.

RandyGPT's own hyperparameters (lr 1e-4 to 1e-5, weight decay 0.1, dropout 0.1),
kept for comparison. The recipes learn far faster.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.model.n_embd = 128
  config.model.n_head = 4
  config.model.n_layer = 8
  return config
