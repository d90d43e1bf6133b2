"""A chat model that adds, subtracts, multiplies and finds common divisors.

    rgpt problems --task=arithmetic --output=arithmetic.jsonl
    rgpt train --config=arithmetic_chat --workdir=runs/arithmetic
    rgpt evaluate --workdir=runs/arithmetic --task=arithmetic

4 layers x 128, 4 heads, context 128; 0.89M parameters. The problems come from
reasoning-gym (extra: evals); those that `evaluate` asks are never written for
training. Two busy cores of an AMD EPYC, 2,000 steps in 32 minutes (planned for
3,000, shortened at step 1,258 by --config.total_steps=2000): loss 0.5188, and
42 % of 300 right: 53 % of the sums, 18 % of the products, 56 % of the divisors.

Digits are tokens of their own, and the words around them a token each.
"""

from configs import speedrun_1min


def get_config():
  config = speedrun_1min.get_config()
  config.total_steps = 3000
  config.model.n_embd = 128
  config.model.n_head = 4
  config.opt.muon_lr = 0.02
  config.opt.weight_decay = 0.1
  config.opt.decay_fraction = 0.7
  config.opt.warmup_steps = 50
  config.data.path = 'arithmetic.jsonl'
  config.data.format = 'chat'
  config.data.tokenizer = 'sentencepiece'
  config.data.vocab_size = 400
  config.data.val_fraction = 0.02
  config.data.loss_on = 'assistant'
  config.data.packing = True
  config.eval.every = 500
  config.checkpoint.every = 1000
  config.sample.prompt = 'State the final answer to the following arithmetic'
  config.sample.prompt += ' problem: 12 + 34 ='
  config.sample.max_tokens = 8
  return config
