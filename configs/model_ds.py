"""RandyGPT's `ds`: 12 layers x 128, 4 heads; 2.409M parameters at V=67.

    rgpt train --config=model_ds --workdir=runs/ds

Neither speed nor loss has been recorded.

RandyGPT's own hyperparameters (lr 1e-4 to 1e-5, weight decay 0.1, dropout 0.1),
kept for comparison. The recipes learn far faster.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.model.n_embd = 128
  config.model.n_head = 4
  config.model.n_layer = 12
  return config
