"""Tokens of one choice -> the text that may be shown so far.

Two things keep text back: half a character, and what could be the beginning of
a stop string. Both depend on the tokens alone, so the pieces joined are the
same text whatever their size.
"""

from gpt.tokenizers import StreamDecoder


class Stop:
  """A stop string, ready to be found (Knuth, Morris, Pratt 1977).

  Attributes:
    fallback: for each length of a match, that of the next shorter one.
  """

  def __init__(self, text: str):
    self.text = text
    self.fallback = [0]
    k = 0
    for c in text[1:]:
      while k and text[k] != c:
        k = self.fallback[k - 1]
      k += text[k] == c
      self.fallback.append(k)


class StopMatcher:
  """Finds a Stop, which any number of them may share, in a stream."""

  def __init__(self, stop: Stop):
    self.stop = stop.text
    # How long the match is of which all characters so far are the last ones.
    self.matched = 0
    self._fallback = stop.fallback

  def feed(self, c: str) -> bool:
    """Takes one character; whether the string ends with it."""
    k = self.matched
    while k and self.stop[k] != c:
      k = self._fallback[k - 1]
    self.matched = k + (self.stop[k] == c)
    return self.matched == len(self.stop)


class TextStream:
  """Feeds on token ids, gives text; ends at the first of `stops` (Stops).

  Attributes:
    length: characters decoded so far, shown or not.
    shown: characters given out.
    stopped: a stop string was found; nothing more comes.
  """

  def __init__(self, tokenizer, stops=()):
    self._decoder = StreamDecoder(tokenizer)
    self._matchers = [StopMatcher(stop) for stop in stops]
    self._held = ''
    self.length = 0
    self.shown = 0
    self.stopped = False

  def feed(self, *ids: int) -> str:
    """What may be shown now that these tokens have come."""
    return self._take(''.join(map(self._decoder.feed, ids)))

  def finish(self) -> str:
    """What is left when no more tokens come; nothing after a stop string."""
    if self.stopped:
      return ''
    text = self._take(self._decoder.flush())
    if not self.stopped:
      text += self._held
      self.shown += len(self._held)
      self._held = ''
    return text

  def _take(self, piece: str) -> str:
    self.length += len(piece)
    if not self._matchers:
      self.shown += len(piece)
      return piece
    before = len(self._held)
    self._held += piece
    for i, c in enumerate(piece):
      ends = [len(m.stop) for m in self._matchers if m.feed(c)]
      if ends:
        self.stopped = True
        # Of stops that end together the longest began first.
        return self._show(before + i + 1 - max(ends), keep=False)
    hold = max(m.matched for m in self._matchers)
    return self._show(len(self._held) - hold, keep=True)

  def _show(self, end: int, keep: bool) -> str:
    text = self._held[:end]
    self._held = self._held[end:] if keep else ''
    self.shown += len(text)
    return text
