"""Events -> OpenAI's JSON, whole or in chunks."""

import secrets
import time

from serving.engine import jobs

MIN_LOGPROB = -9999.0  # JSON has no minus infinity


class Reply:
  """The parts both OpenAI routes share; one object a request.

  Args:
    job: the Job. model: name to answer with. tokenizer: for token texts.
    include_usage: the stream ends with a usage chunk.
  """

  prefix = whole_object = chunk_object = ''

  def __init__(self, job, model, tokenizer, include_usage=False, extra=None):
    self.job = job
    self.tokenizer = tokenizer
    self._include_usage = include_usage
    self._head = {
      'id': f'{self.prefix}-{secrets.token_hex(12)}',
      'object': self.whole_object,
      'created': int(time.time()),
      'model': model,
      # The one used, so that a random text can be had again.
      'seed': job.sampling.seed,
      **(extra or {}),
    }
    self._opened = set()
    self._echo = {}  # prompt number -> tokens
    self._prompts = {}  # prompt number -> text

  def usage(self) -> dict:
    prompt, completion = self.job.prompt_tokens, self.job.completion_tokens
    return {
      'prompt_tokens': prompt,
      'completion_tokens': completion,
      'total_tokens': prompt + completion,
    }

  def head(self) -> dict:
    weights = self.job.weights
    fingerprint = weights.fingerprint if weights else None
    return {**self._head, 'system_fingerprint': fingerprint}

  def whole(self, events) -> dict:
    """The answer to a request without streaming."""
    deltas, reasons = self._merge(events)
    choices = [
      self.whole_choice(index, *self._opening(index, *deltas[index]), reason)
      for index, reason in sorted(reasons.items())
    ]
    return {**self.head(), 'choices': choices, 'usage': self.usage()}

  def chunks(self, events) -> list[dict]:
    """What to stream for a batch of events; text of one choice is joined."""
    deltas, reasons = self._merge(events)
    out = []
    for index in sorted(deltas.keys() | reasons.keys()):
      text, tokens = deltas.get(index, ('', []))
      first = index not in self._opened
      self._opened.add(index)
      if first:
        text, tokens = self._opening(index, text, tokens)
        out += self.first_choices(index)
      if text or tokens:
        out.append(self.chunk_choice(index, text, tokens))
      if index in reasons:
        out.append(self.last_choice(index, reasons[index]))
    return [self._chunk([choice]) for choice in out]

  def last_chunks(self) -> list[dict]:
    if not self._include_usage:
      return []
    return [{**self._chunk([]), 'usage': self.usage()}]

  def _chunk(self, choices) -> dict:
    chunk = {**self.head(), 'object': self.chunk_object, 'choices': choices}
    if self._include_usage:
      chunk['usage'] = None
    return chunk

  def _merge(self, events):
    """({index: (text, tokens)}, {index: reason}) of a batch."""
    texts, tokens, reasons = {}, {}, {}
    for event in events:
      if isinstance(event, jobs.Scored):
        self._echo[event.prompt] = event.tokens
      elif isinstance(event, jobs.Delta):
        texts.setdefault(event.index, []).append(event.text)
        tokens.setdefault(event.index, []).extend(event.tokens)
      elif isinstance(event, jobs.Finished):
        reasons[event.index] = event.reason
        texts.setdefault(event.index, [])
    deltas = {i: (''.join(t), tokens.get(i, [])) for i, t in texts.items()}
    return deltas, reasons

  def _opening(self, index, text, tokens):
    """Text and tokens of a choice with what stands before them."""
    return text, tokens

  def first_choices(self, index) -> list[dict]:
    return []

  def token_text(self, id: int) -> str:
    """A token as text; part of a character as 'bytes:\\xf0'."""
    data = self.tokenizer.token_bytes(id)
    if not data:
      names = {i: name for name, i in self.tokenizer.special_tokens.items()}
      return names.get(id, '')
    try:
      return data.decode('utf-8')
    except UnicodeDecodeError:
      return 'bytes:' + ''.join(f'\\x{b:02x}' for b in data)


class CompletionReply(Reply):
  """POST /v1/completions."""

  prefix = 'cmpl'
  whole_object = chunk_object = 'text_completion'

  def _opening(self, index, text, tokens):
    s = self.job.sampling
    if not s.echo:
      return text, tokens
    prompt = self._prompt_text(index // s.n)
    shift = len(prompt)
    shifted = [
      jobs.Token(t.id, t.start + shift, t.end + shift, t.logprob, t.top)
      for t in tokens
    ]
    return prompt + text, self._echo.get(index // s.n, []) + shifted

  def _prompt_text(self, number: int) -> str:
    if number not in self._prompts:
      tokens = self.job.prompts[number]
      self._prompts[number] = self.tokenizer.decode(tokens)
    return self._prompts[number]

  def _choice(self, index, text, tokens, reason) -> dict:
    return {
      'index': index,
      'text': text,
      'logprobs': self._logprobs(index, tokens),
      'finish_reason': reason,
    }

  whole_choice = _choice

  def chunk_choice(self, index, text, tokens):
    return self._choice(index, text, tokens, None)

  def last_choice(self, index, reason):
    return {
      'index': index,
      'text': '',
      'logprobs': None,
      'finish_reason': reason,
    }

  def _logprobs(self, index, tokens) -> dict | None:
    if self.job.sampling.logprobs is None:
      return None
    return {
      'tokens': [self.token_text(t.id) for t in tokens],
      'token_logprobs': [finite(t.logprob) for t in tokens],
      'top_logprobs': [self._top(t) for t in tokens],
      'text_offset': [t.start for t in tokens],
    }

  def _top(self, token) -> dict | None:
    """The most probable tokens and the one that was taken."""
    if token.logprob is None:
      return None
    pairs = [*token.top, (token.id, token.logprob)]
    return {self.token_text(id): finite(logprob) for id, logprob in pairs}


class ChatReply(Reply):
  """POST /v1/chat/completions."""

  prefix = 'chatcmpl'
  whole_object = 'chat.completion'
  chunk_object = 'chat.completion.chunk'

  def whole_choice(self, index, text, tokens, reason):
    return {
      'index': index,
      'message': {'role': 'assistant', 'content': text, 'refusal': None},
      'logprobs': self._logprobs(tokens),
      'finish_reason': reason,
    }

  def _delta(self, index, delta, tokens=(), reason=None):
    return {
      'index': index,
      'delta': delta,
      'logprobs': self._logprobs(tokens) if tokens else None,
      'finish_reason': reason,
    }

  def first_choices(self, index):
    return [self._delta(index, {'role': 'assistant', 'content': ''})]

  def chunk_choice(self, index, text, tokens):
    return self._delta(index, {'content': text}, tokens)

  def last_choice(self, index, reason):
    return self._delta(index, {}, reason=reason)

  def _logprobs(self, tokens) -> dict | None:
    if self.job.sampling.logprobs is None:
      return None
    content = [
      {
        **self._entry(t.id, t.logprob),
        'top_logprobs': [self._entry(*pair) for pair in t.top],
      }
      for t in tokens
      if t.id not in self.job.stop_ids
    ]
    return {'content': content, 'refusal': None}

  def _entry(self, id, logprob) -> dict:
    data = self.tokenizer.token_bytes(id)
    return {
      'token': self.token_text(id),
      'logprob': finite(logprob),
      'bytes': list(data),
    }


def finite(logprob: float | None) -> float | None:
  return None if logprob is None else max(logprob, MIN_LOGPROB)
