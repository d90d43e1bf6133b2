"""Small talk: a chat model of everyday phrases.

    rgpt train --config=small_talk \\
      --config.data.path=../shared/data/chitchat_chat.jsonl \\
      --workdir=runs/small_talk
    rgpt chat --workdir=runs/small_talk

4 layers x 128, 4 heads, context 256, 2,000 tokens: 1.30M parameters. Students
who chat about their day repeat themselves, so there is something to learn for
a model of this size: 3,199 dialogues of the BYU chit-chat data set (PyPI:
chitchat-dataset).
"""

from configs import speedrun_10min


def get_config():
  config = speedrun_10min.get_config()
  config.total_steps = 800
  config.batch_size = 12
  config.model.n_layer = 4
  config.model.dropout = 0.0
  config.opt.weight_decay = 0.05
  config.opt.decay_fraction = 0.7
  config.data.path = 'chitchat_chat.jsonl'
  config.data.format = 'chat'
  config.data.tokenizer = 'sentencepiece'
  config.data.vocab_size = 2000
  config.data.loss_on = 'all'
  config.data.packing = True
  config.eval.every = 200
  config.checkpoint.every = 200
  config.sample.prompt = 'hi how are you?'
  config.sample.max_tokens = 64
  return config
