"""GPT-2's small shape as one would train it today, for one GPU or more.

    rgpt train --config=gpt2_124m \
      --config.data.path='corpus/*.txt' --workdir=runs/gpt2_124m
    python -m launch.plan --devices=8 --kind=h100 --config=gpt2_124m

12 layers x 768, 12 heads, context 1,024, 135M parameters with 32,768 tokens:
RoPE, QK-norm, exclusive attention, a final norm, soft-capped logits, blocks
that begin as the identity, NorMuon, bfloat16: the options that won in budgets.
One document a line, packed into whole windows; none attends to another. 2.6G
tokens, 19 for each parameter. Never run as a whole: the learning rates are
extrapolated. A plain model of this shape trained at 505K to 567K tokens/s on an
H200, so this is some 80 minutes there. `--config.model.remat` recomputes the
blocks in the backward pass when memory is short; several GPUs take fewer
sequences at once by themselves.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.lr = 3e-3
  config.min_lr = 0.0
  config.batch_size = 256
  config.total_steps = 10_000
  config.model.n_embd = 768
  config.model.n_head = 12
  config.model.n_layer = 12
  config.model.block_size = 1024
  config.model.dropout = 0.0
  config.model.pos = 'rope'
  config.model.qk_norm = True
  config.model.exclusive_attention = True
  config.model.final_norm = True
  config.model.logit_softcap = 15.0
  config.model.zero_init = True
  config.opt.name = 'normuon'
  config.opt.muon_lr = 0.02
  config.opt.schedule = 'wsd'
  config.opt.decay_fraction = 0.6
  config.opt.warmup_steps = 200
  config.opt.b2 = 0.95
  config.opt.weight_decay = 0.01
  config.opt.clip = 'global_norm'
  config.opt.plateau_patience = 0
  config.data.format = 'lines'
  config.data.packing = True
  config.data.tokenizer = 'sentencepiece'
  config.data.vocab_size = 32_768
  config.data.val_fraction = 0.01
  config.eval.every = 250
  config.checkpoint.every = 500
  config.sample.prompt = ''
  config.parallel.micro_batch_size = 32
  return config
