"""A chat model in eleven minutes of two CPU cores: microgpt's small shape.

    rgpt train --config=chat_small \
      --config.data.path=conversations.jsonl --workdir=runs/chat_small
    rgpt chat --workdir=runs/chat_small

4 layers x 128, 4 heads, context 512: 1.90M parameters with 4,096 tokens. 2
cores of an AMD EPYC (Zen 5), 2,437 conversations of OASST1: 11 minutes, 4.7022
nats per assistant token and 2.0132 bits/byte (full pass, best checkpoint). The
loss covers what the assistant says; several conversations share a window. Made
for a few thousand conversations, which are read many times over: hence dropout
and weight decay, and long conversations are cut instead of skipped.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.lr = 3e-3
  config.min_lr = 0.0
  config.batch_size = 8
  config.total_steps = 2400
  config.model.arch = 'microgpt'
  config.model.n_embd = 128
  config.model.n_head = 4
  config.model.n_layer = 4
  config.model.block_size = 512
  config.model.dropout = 0.3
  config.opt.name = 'muon'
  config.opt.muon_lr = 0.02
  config.opt.schedule = 'linear_warmup'
  config.opt.warmup_steps = 200
  config.opt.b1 = 0.85
  config.opt.b2 = 0.99
  config.opt.weight_decay = 0.1
  config.opt.clip = 'none'
  config.opt.plateau_patience = 0
  config.data.path = 'conversations.jsonl'
  config.data.format = 'chat'
  config.data.tokenizer = 'sentencepiece'
  config.data.vocab_size = 4096
  config.data.skip_long = False
  config.data.loss_on = 'assistant'
  config.data.packing = True
  config.eval.every = 200
  config.eval.windows = 100
  config.checkpoint.every = 400
  config.sample.prompt = 'What is the difference between a cat and a dog?'
  config.sample.max_tokens = 128
  return config
