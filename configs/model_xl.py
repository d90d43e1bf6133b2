"""RandyGPT's `xl`: 8 layers x 384, 8 heads; 14.31M parameters at V=67.

    rgpt train --config=model_xl --workdir=runs/xl

Neither speed nor loss has been recorded.

RandyGPT's own hyperparameters (lr 1e-4 to 1e-5, weight decay 0.1, dropout 0.1),
kept for comparison. The recipes learn far faster.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.model.n_embd = 384
  config.model.n_head = 8
  config.model.n_layer = 8
  return config
