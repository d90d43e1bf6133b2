"""Teaches a pretrained chat model your conversations: LoRA of rank 8.

    rgpt import_model --input=hf://HuggingFaceTB/SmolLM2-135M-Instruct \
      --workdir=runs/smollm2
    rgpt train --config=adapt --init_from=runs/smollm2 \
      --config.model.block_size=512 \
      --config.data.path=conversations.jsonl --workdir=runs/mine
    rgpt chat --workdir=runs/mine

The model and its tokenizer are those of --init_from. SmolLM2-135M-Instruct has
134.5M parameters, and 2.4M more are trained beside them. The loss covers what
the assistant says, and several conversations share a window. docs/adapting.md
has what it costs and gains.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.lr = 2e-4
  config.min_lr = 0.0
  config.batch_size = 4
  config.total_steps = 200
  config.model.dropout = 0.0
  config.opt.lora_rank = 8
  config.opt.schedule = 'linear_warmup'
  config.opt.warmup_steps = 10
  config.opt.b2 = 0.99
  config.opt.weight_decay = 0.0
  config.opt.clip = 'global_norm'
  config.opt.plateau_patience = 0
  config.data.path = 'conversations.jsonl'
  config.data.format = 'chat'
  config.data.loss_on = 'assistant'
  config.data.packing = True
  config.eval.every = 50
  config.eval.windows = 16
  config.checkpoint.every = 50
  config.sample.prompt = 'What is the difference between a cat and a dog?'
  config.sample.max_tokens = 64
  return config
