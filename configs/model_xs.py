"""RandyGPT's `xs`: 3 layers x 116, 4 heads; 0.530M parameters at V=67.

    rgpt train --config=model_xs --workdir=runs/xs

2 cores of an AMD EPYC (Zen 5): 47,320 tokens/s at batch 16, so the 1,000 steps
(16.4M tokens) are some 6 minutes. No full run has been recorded.

RandyGPT's own hyperparameters (lr 1e-4 to 1e-5, weight decay 0.1, dropout 0.1),
kept for comparison. The recipes learn far faster.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.model.n_embd = 116
  config.model.n_head = 4
  config.model.n_layer = 3
  return config
