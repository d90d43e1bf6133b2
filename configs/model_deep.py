"""RandyGPT's `deep`: 16 layers x 192, 6 heads; 7.153M parameters at V=67.

    rgpt train --config=model_deep --workdir=runs/deep

Batch 16 instead of 64, as in RandyGPT. Neither speed nor loss has been
recorded.

RandyGPT's own hyperparameters (lr 1e-4 to 1e-5, weight decay 0.1, dropout 0.1),
kept for comparison. The recipes learn far faster.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.model.n_embd = 192
  config.model.n_head = 6
  config.model.n_layer = 16
  config.batch_size = 16
  return config
