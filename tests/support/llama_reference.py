"""Llama in numpy, straight from a GGUF file: a reference for our reader.

It shares no code with gpt/: tensors come from the `gguf` package's own reader,
they are used in the file's order, and pairs (x_2i, x_{2i+1}) are rotated, as
llama.cpp does.
"""

import functools

import numpy as np


class LlamaReference:
  """A model of architecture `llama`, tied or not, without biases."""

  def __init__(self, path):
    import gguf

    reader = gguf.GGUFReader(path)
    self._dequantize = gguf.quants.dequantize
    self._tensors = {t.name: t for t in reader.tensors}
    value = {
      k: f.contents() for k, f in reader.fields.items() if len(f.data) == 1
    }
    self.n_layer = value['llama.block_count']
    self.n_head = value['llama.attention.head_count']
    self.n_kv = value.get('llama.attention.head_count_kv', self.n_head)
    self.eps = value['llama.attention.layer_norm_rms_epsilon']
    self.base = value.get('llama.rope.freq_base', 10_000.0)

  @functools.cache  # noqa: B019
  def weight(self, name):
    """float32[out, in]."""
    tensor = self._tensors[f'{name}.weight']
    flat = self._dequantize(tensor.data, tensor.tensor_type)
    return np.asarray(flat, np.float32).reshape(tensor.shape[::-1].tolist())

  def norm(self, x, name):
    square = np.mean(np.square(x, dtype=np.float64), -1, keepdims=True)
    return (x / np.sqrt(square + self.eps)).astype(np.float32) * self.weight(
      name
    )

  def rotate(self, x):
    """x float32[L, heads, K]: pairs of neighbours, by their position."""
    length, _, width = x.shape
    speed = self.base ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    angle = np.arange(length)[:, None] * speed
    turn = np.exp(1j * angle)[:, None]
    pairs = x[..., 0::2] + 1j * x[..., 1::2]
    turned = pairs * turn
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)

  def logits(self, ids):
    """float32[L, V] for int[L] ids."""
    x = self.weight('token_embd')[np.asarray(ids)]
    length = len(x)
    hidden = np.triu(np.full((length, length), -np.inf), 1)
    for i in range(self.n_layer):
      layer = f'blk.{i}.'
      h = self.norm(x, layer + 'attn_norm')
      q, k, v = (
        (h @ self.weight(f'{layer}attn_{name}').T).reshape(length, heads, -1)
        for name, heads in (
          ('q', self.n_head),
          ('k', self.n_kv),
          ('v', self.n_kv),
        )
      )
      q, k = self.rotate(q), self.rotate(k)
      mixed = np.empty_like(q)
      for head in range(self.n_head):
        group = head * self.n_kv // self.n_head
        scores = q[:, head] @ k[:, group].T / np.sqrt(q.shape[-1]) + hidden
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        mixed[:, head] = scores @ v[:, group]
      mixed = mixed.reshape(length, -1).astype(np.float32)
      x = x + mixed @ self.weight(layer + 'attn_output').T
      h = self.norm(x, layer + 'ffn_norm')
      gate = h @ self.weight(layer + 'ffn_gate').T
      gate = gate / (1 + np.exp(-gate))
      up = h @ self.weight(layer + 'ffn_up').T
      x = x + (gate * up) @ self.weight(layer + 'ffn_down').T
    x = self.norm(x, 'output_norm')
    untied = 'output.weight' in self._tensors
    return x @ self.weight('output' if untied else 'token_embd').T
