"""Every key of a run, with its meaning, unit and allowed values.

A preset or recipe starts from `get_config()` and sets what differs; the command
line wins over both (`--config.lr=1e-5`, `--config.model.n_layer=2`). The keys
that people tune most come first, the rest in groups. A number that follows from
others is not a key.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()

  # Wall time of the whole run: '90s', '10m', '8h'. A plan then sets every key
  # that is None, as those of configs/budget.py. '': none, total_steps counts.
  config.budget = ''
  # Seed of initial weights, data order, dropout and samples. 0 .. 2^32 - 1.
  config.seed = 42
  # Peak learning rate. > 0.
  config.lr = 1e-4
  # Final learning rate of the schedule (linear_warmup ends at 0 instead), and
  # the floor of plateau cuts. 0 .. lr.
  config.min_lr = 1e-5
  # Sequences per optimizer step, over all devices and hosts. >= 1.
  config.batch_size = 64
  # Target number of optimizer steps: a run that has reached it has nothing to
  # train. >= 1.
  config.total_steps = 1000

  config.model = model = ConfigDict()
  # 'randy' (squared ReLU, N(0, 0.02) init) or 'microgpt' (RMSNorm after the
  # embedding, ReLU, N(0, 0.08) init). See gpt/model/transformer.py.
  model.arch = 'randy'
  # Width D of the residual stream; a multiple of n_head unless head_dim is set.
  model.n_embd = 256
  # Attention heads H. >= 1.
  model.n_head = 8
  # Blocks N, each attention and an MLP. >= 1.
  model.n_layer = 6
  # Context T in tokens: how far back attention can look. >= 1.
  model.block_size = 256
  # Drop probability after the attention projection and the MLP. 0 <= p < 1.
  model.dropout = 0.1
  # 'auto' (that of the arch), 'relu2', 'relu', 'gelu' (tanh form) or 'swiglu'.
  model.mlp = 'auto'
  # 'learned' (an embedding added once) or 'rope' (rotary, in every layer).
  model.pos = 'learned'
  # Key/value heads, each shared by n_head / n_kv_head query heads; must divide
  # n_head. 0: n_head.
  model.n_kv_head = 0
  # Width K of a head, even for pos='rope'. 0: n_embd / n_head.
  model.head_dim = 0
  # Width F of the MLP. 0: 4 n_embd.
  model.mlp_width = 0
  # Base of the rotary frequencies base^(-2i / K) (pos='rope'). > 0.
  model.rope_base = 10_000.0
  # Their scaling for long contexts: '' (none), 'linear:FACTOR', or
  # 'llama3:FACTOR,LOW,HIGH,CONTEXT'. See gpt/model/rope_frequencies.py.
  model.rope_scaling = ''
  # 'rms' (RMSNorm) or 'layer' (LayerNorm), for every norm of width D.
  model.norm = 'rms'
  # A trained gain on each of these norms, and with `bias` a bias on LayerNorms.
  model.norm_gain = False
  # Added to the mean square or variance under the root of every norm. > 0.
  model.norm_eps = 1e-5
  # Biases on all matrices of attention and MLP, and on LayerNorms with gains.
  model.bias = False
  # A norm after the embedding (always on for 'microgpt').
  model.embed_norm = False
  # RMSNorm on queries and keys.
  model.qk_norm = False
  # Trained gains [K] on these, one for all query heads, one for all key heads.
  model.qk_gain = False
  # Remove from the output of attention what lies along a position's own value
  # (Zhai 2026): the residual stream has that already.
  model.exclusive_attention = False
  # A norm before the LM head.
  model.final_norm = False
  # Cap c on the logits: c * tanh(logits / c). >= 0; 0: off.
  model.logit_softcap = 0.0
  # Share one matrix between token embedding and LM head.
  model.tied_embeddings = False
  # Initialise wo and fc2 with zeros: every block begins as the identity.
  model.zero_init = False
  # Standard deviation of the initial weights. >= 0; 0: that of the arch.
  model.init_std = 0.0
  # Matmul dtype: 'float32', 'bfloat16', 'mixed' (bfloat16 operands, float32
  # sums and activations), or 'auto': bfloat16 on CUDA and TPU, mixed on CPUs
  # with bfloat16 instructions, else float32. On a CPU config.json records which
  # of them it was, and the run keeps it on any machine. On Metal it is always
  # float32, and so are parameters, norms, softmax and loss everywhere.
  model.dtype = 'auto'
  # Dtype in which weights are kept, in memory and in checkpoints: 'float32', or
  # 'bfloat16' for models that are used or adapted, not trained.
  model.param_dtype = 'float32'
  # 'auto' (the fastest tested kernel of the backend), 'plain', 'blocked' or
  # 'cudnn' (CUDA only).
  model.attention = 'auto'
  # Recompute each block in the backward pass: less memory, about a third more
  # work.
  model.remat = False

  config.opt = opt = ConfigDict()
  # 'adamw', 'muon' (orthogonalised momentum for the block matrices, AdamW for
  # the rest), or 'normuon' (which then evens out the neurons of each matrix).
  opt.name = 'adamw'
  # 'randy': constant for (1 - decay_fraction) of total_steps, then cosine to
  # min_lr. 'linear_warmup': warmup, then linear to 0. 'wsd': warmup, stable,
  # linear decay to min_lr over the last decay_fraction. See
  # gpt/training/schedules.py.
  opt.schedule = 'randy'
  # Steps of linear warmup; the first step has lr / warmup_steps. 0: none, as
  # schedule 'randy' requires.
  opt.warmup_steps = 0
  # Fraction of total_steps over which 'randy' and 'wsd' decay. 0 <= f <= 1.
  opt.decay_fraction = 0.4
  # Decay of Adam's running mean of gradients. 0 <= b1 < 1.
  opt.b1 = 0.9
  # Decay of Adam's running mean of squared gradients. 0 <= b2 < 1.
  opt.b2 = 0.999
  # Added to the square root of that mean. > 0.
  opt.eps = 1e-8
  # Decoupled weight decay, times the learning rate, on matrices and embeddings.
  # >= 0.
  opt.weight_decay = 0.1
  # Gradient clipping: 'element' (clamp each entry), 'global_norm' or 'none'.
  opt.clip = 'element'
  # Largest entry, or largest norm, that clipping leaves unchanged. > 0.
  opt.clip_value = 1.0
  # Peak learning rate of the block matrices under muon (the rest use
  # config.lr). > 0.
  opt.muon_lr = 0.02
  # Nesterov momentum of muon. 0 <= m < 1.
  opt.muon_momentum = 0.95
  # Newton-Schulz iterations that orthogonalise the momentum. >= 1.
  opt.muon_steps = 5
  # Decay per step of an exponential moving average of the weights, which eval
  # and samples then use, e.g. 0.999. 0 <= d < 1; 0: off.
  opt.ema_decay = 0.0
  # LoRA: train adapters of this rank beside the frozen weights of --init_from
  # (gpt/training/lora.py; needs 'adamw'). 0 .. n_embd; 0: train all weights.
  opt.lora_rank = 0
  # The update of a matrix is lora_alpha / lora_rank * A B. > 0.
  opt.lora_alpha = 16.0
  # 'all' matrices of the blocks, or some of them: 'wq,wk,wv,wo,fc1,gate,fc2'.
  opt.lora_targets = 'all'
  # Reduce on plateau: evals without a new best before the learning rate is cut.
  # 0: off.
  opt.plateau_patience = 30
  # Factor of the learning rate at a cut. 0 < f <= 1.
  opt.plateau_factor = 0.5
  # Number of cuts; when another one is due, the run stops early. >= 0.
  opt.plateau_max_reductions = 3

  config.data = data = ConfigDict()
  # Files, directories or globs, comma separated: plain text and JSON Lines
  # (also .gz or .zst), Parquet, nanoGPT's token files (.bin), also those of
  # hf://datasets/owner/name/...; 'shakespeare' (downloaded once); 'sample'
  # (built in); 'auto': train.txt if it exists, else shakespeare, else sample.
  data.path = 'auto'
  # Field of JSON Lines or column of Parquet files that holds the text (or, with
  # data.format=chat, the messages). '': text (of conversations: whole lines of
  # JSON Lines, messages of Parquet).
  data.text_field = ''
  # 'text' (one text, or documents), 'lines' (one document per line) or 'chat'
  # (conversations, see gpt/data/conversations.py).
  data.format = 'text'
  # 'char', 'sentencepiece' (byte-fallback BPE), 'hf' (byte-level BPE in Hugging
  # Face's format, as in microgpt; extra: hf) or 'randygpt' (a vocab.json).
  data.tokenizer = 'char'
  # Path of an existing tokenizer (file or directory). '': one is trained.
  data.tokenizer_path = ''
  # Jinja chat template of a new run of conversations: 'chatml' or a file. '':
  # that of the tokenizer, if it has one, else our own format (<|user|> ...).
  data.chat_template = ''
  # Tokens of a vocabulary that is trained (sentencepiece, hf). >= 1.
  data.vocab_size = 2000
  # What separates documents in data.format text: 'none', 'blank_line', or a
  # literal such as '<|eos|>'.
  data.document_separator = 'none'
  # Keep every training window inside one document (text; needs a separator).
  data.document_aware = False
  # Windows of a text: 'random' (drawn with replacement), or 'shuffled' (each
  # once in an epoch, in an order of its own; for corpora of few epochs).
  data.order = 'random'
  # Skip lines and conversations longer than block_size instead of cutting them.
  data.skip_long = False
  # Tokens that count in the loss: 'all', or those of the 'assistant' (chat).
  data.loss_on = 'all'
  # Put several lines or conversations into a window; none attends to another.
  data.packing = False
  # Fraction held out for validation: the end of a text, or a fixed choice of
  # lines or conversations, the same for every seed. 0 < f < 1.
  data.val_fraction = 0.1
  # Directory of the cached token files. '': in the workdir.
  data.cache_dir = ''

  config.eval = evaluation = ConfigDict()
  # Steps between evals. >= 1.
  evaluation.every = 25
  # Windows (or lines, or conversations) in the quick estimate of the validation
  # loss, the same ones every time. >= 1.
  evaluation.windows = 50
  # Evaluate the whole validation split at the end of training.
  evaluation.full_at_end = True
  # Append a sample to samples.txt at every eval.
  evaluation.sample = False

  config.checkpoint = checkpoint = ConfigDict()
  # Steps between saves of the latest state; a new best is saved when found.
  # 0: only at the end and when interrupted.
  checkpoint.every = 250
  # Latest checkpoints to keep: with 2, a damaged one is no loss. >= 1.
  checkpoint.keep = 2

  config.sample = sample = ConfigDict()
  # Prompt of the sample at the end of training; for chat models, the user's
  # message. '': start from BOS.
  sample.prompt = 'ROMEO:'
  # Maximum length of the sample in tokens, without the prompt. >= 1.
  sample.max_tokens = 200
  # Divisor of the logits. >= 0; 0: always the likeliest token.
  sample.temperature = 0.8
  # Sample from the likeliest tokens that hold this probability together.
  # 0 < p <= 1.
  sample.top_p = 0.9
  # Sample from the k likeliest tokens. >= 0; 0: all.
  sample.top_k = 0

  config.parallel = parallel = ConfigDict()
  # CPU devices to split the batch over. >= 0; 0: one per core.
  parallel.num_cpu_devices = 0
  # Sequences per device and micro-batch; a step sums the gradients of its
  # micro-batches. >= 0; 0: to fit the cache on a CPU, all at once elsewhere.
  parallel.micro_batch_size = 0
  # Devices that split the batch, each with a copy of the shards below: a
  # number, or 'auto': all that fsdp and tensor leave.
  parallel.data = 'auto'
  # Devices that share params and optimizer state, and split the batch. >= 1;
  # must divide model.n_embd. data x fsdp x tensor = number of devices.
  parallel.fsdp = 1
  # Devices that share each matrix product. >= 1; must divide the heads, the
  # key/value heads and the MLP width.
  parallel.tensor = 1
  # Join the hosts of a cluster (jax.distributed) before the run.
  parallel.distributed = False
  # Seconds to wait for the other processes at the start. >= 1.
  parallel.join_s = 300
  # Seconds without a sign of life after which a process counts as dead, and
  # the others end. >= 5.
  parallel.heartbeat_s = 15

  # Write TensorBoard event files to the workdir (extra: tensorboard).
  config.tensorboard = False
  return config
