"""RandyGPT's `xs`: 3 layers, 116 wide, 4 heads; 0.530M parameters at V=67.

    python -m launch.train --config=configs/model_xs.py --workdir=runs/xs

RandyGPT's own hyperparameters (lr 1e-4 to 1e-5, weight decay 0.1, dropout
0.1). They are kept for comparison; the recipes learn far faster.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.model.n_embd = 116
  config.model.n_head = 4
  config.model.n_layer = 3
  return config
