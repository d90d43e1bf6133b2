"""microgpt's large chat model, for many conversations and a GPU. Never run.

    rgpt train --config=chat_large \
      --config.data.path=conversations.jsonl --workdir=runs/chat_large

8 layers x 384, 8 heads, context 1,024: 17.69M parameters with 4,096 tokens.
(microgpt's table says about 25M; its shapes give this number.)
"""

from configs import chat_medium


def get_config():
  config = chat_medium.get_config()
  config.total_steps = 100_000
  config.model.update(n_embd=384, n_layer=8)
  config.eval.every = 1000
  config.checkpoint.every = 5000
  return config
