"""Texts that tokenizers of different programs are likely to disagree on."""

ADVERSARIAL = (
  "It's  a\ttest\n\n\nof 12345 Ünïcödé — ☃ \U0001f642\u200d e\u0301 don't  \n",
  " trailing  spaces   <|im_end|><bos><|user|> I'LL 'S 'd've ... \u3000\u00a0x",
  '中文字 ١٢٣ ½ﬁ \u200b\ufeff²³ Ⅷ',
  '\r\n\r\n \n\t\n  \n',
  '   ',
  'a' * 300 + ' ' * 40 + '!' * 50,
  '\U0001f468\u200d\U0001f469\u200d\U0001f467 ज़िंदगी नमस्ते ไทย',
  '{"key": [1, -2.5e10, null]}; def f(x): return x**2 # ok?',
  "'S'LL'Tis'twas 'RE we'RE",
)


def multibyte() -> str:
  """Characters of two to four bytes, often enough to get tokens."""
  return 'Ünïcödé — \U0001f642 中 ☃ ' * 20
