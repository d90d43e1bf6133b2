"""RandyGPT's `s`: 8 layers, 128 wide, 4 heads; 1.623M parameters at V=67.

    python -m launch.train --config=configs/model_s.py --workdir=runs/s

RandyGPT's own hyperparameters (lr 1e-4 to 1e-5, weight decay 0.1, dropout
0.1). They are kept for comparison; the recipes learn far faster.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.model.n_embd = 128
  config.model.n_head = 4
  config.model.n_layer = 8
  return config
