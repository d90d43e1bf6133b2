"""The best model for a time, on this machine, of your text.

    rgpt train --budget=10m --data=book.txt --workdir=runs/book
    rgpt plan --budget=10m --data=book.txt                 (the plan only)
    python -m launch.train --config=configs/budget.py:10m \
      --config.data.path=book.txt --workdir=runs/book      (the same in full)

The time covers everything from the start of the process to its end: s, m and h
are its units. The keys below are chosen when the run starts, from the text, the
speed of the machine and the time, by the law in gpt/planning/law.py; the plan
is printed and kept in the workdir (plan.json). What the command line sets
(--config.model.n_embd=256) is not chosen. docs/training.md has the details.
"""

from ml_collections import config_dict

from configs import default

CHOSEN = {
  int: """batch_size total_steps model.n_embd model.n_head model.n_layer
    model.block_size model.mlp_width opt.warmup_steps opt.plateau_patience
    data.vocab_size eval.every eval.windows checkpoint.every""",
  float: """lr min_lr model.dropout model.logit_softcap opt.muon_lr
    opt.muon_momentum opt.decay_fraction opt.b2 opt.weight_decay
    data.val_fraction""",
  str: """model.arch model.mlp model.pos model.dtype opt.name opt.schedule
    data.format data.tokenizer data.loss_on sample.prompt""",
  bool: """model.qk_norm model.exclusive_attention model.final_norm
    model.zero_init data.packing""",
}


def get_config(budget: str = '10m'):
  config = default.get_config()
  config.budget = budget
  for of, keys in CHOSEN.items():
    for key in keys.split():
      group, _, name = key.rpartition('.')
      # None until the run is planned.
      setattr(
        config[group] if group else config, name, config_dict.placeholder(of)
      )
  return config
