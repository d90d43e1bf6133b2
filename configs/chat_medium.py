"""The chat model that microgpt recommends, for a GPU: context 1,024. Never run.

    rgpt train --config=chat_medium \
      --config.data.path=conversations.jsonl --workdir=runs/chat_medium

6 layers x 256, 8 heads: 7.08M parameters with 4,096 tokens. Two CPU cores would
need most of a day, and a few thousand conversations are soon learnt by heart
(the best checkpoint is the one that is used).
"""

from configs import chat_small


def get_config():
  config = chat_small.get_config()
  config.lr = 1e-3
  config.batch_size = 4
  config.total_steps = 10_000
  config.model.update(n_embd=256, n_head=8, n_layer=6, block_size=1024)
  config.data.skip_long = True
  config.eval.every = 250
  config.checkpoint.every = 1000
  return config
