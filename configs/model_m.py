"""RandyGPT's `m`: 6 layers x 192, 6 heads; 2.729M parameters at V=67.

    rgpt train --config=model_m --workdir=runs/m

Neither speed nor loss has been recorded.

RandyGPT's own hyperparameters (lr 1e-4 to 1e-5, weight decay 0.1, dropout 0.1),
kept for comparison. The recipes learn far faster.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.model.n_embd = 192
  config.model.n_head = 6
  config.model.n_layer = 6
  return config
