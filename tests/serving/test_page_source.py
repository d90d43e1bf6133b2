"""The page shows names, errors and generated text as text."""

import re

from tests.support.workdirs import ROOT


def test_nothing_from_outside_becomes_markup_or_code():
  page = (ROOT / 'serving' / 'static' / 'index.html').read_text()
  assert page.count('textContent') >= 3
  assert not re.search(
    r'innerHTML|outerHTML|insertAdjacentHTML|document\.write|srcdoc'
    r'|createContextualFragment|\beval\(|new Function|setAttribute\(.on',
    page,
  )


def luminance(color):
  """Relative luminance of #rgb, #rrggbb or (r, g, b) (WCAG 2.2)."""
  if isinstance(color, str):
    digits = color[1:] if len(color) == 7 else ''.join(c * 2 for c in color[1:])
    color = [int(digits[i : i + 2], 16) for i in (0, 2, 4)]
  parts = [c / 255 for c in color]
  linear = [
    c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
  ]
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
  high, low = sorted((luminance(a), luminance(b)), reverse=True)
  return (high + 0.05) / (low + 0.05)


def test_text_and_controls_stand_out_in_light_and_dark():
  page = (ROOT / 'serving' / 'static' / 'index.html').read_text()
  light, dark = (
    dict(re.findall(r'--([\w-]+): ([^;]+);', block))
    for block in re.findall(r':root \{(.*?)\}', page, re.DOTALL)
  )
  deepest = max(map(float, re.findall(r'var\(--tint\), ([.\d]+)\)', page)))
  for colors in (light, dark):
    card = colors['card']
    for ink in ('ink', 'faint', 'accent', 'bad'):
      assert contrast(colors[ink], card) >= 4.5, ink
    for ink in ('ink', 'faint'):
      assert contrast(colors[ink], colors['page']) >= 4.5, ink
    assert contrast(colors['on-accent'], colors['accent']) >= 4.5
    assert contrast(colors['ink'], colors['note']) >= 4.5
    assert contrast(colors['edge'], card) >= 3
    below = [
      int(c * 2 if len(card) == 4 else c, 16)
      for c in re.findall('.' if len(card) == 4 else '..', card[1:])
    ]
    tint = map(int, colors['tint'].split(', '))
    mixed = [deepest * t + (1 - deepest) * b for t, b in zip(tint, below)]
    assert contrast(colors['ink'], mixed) >= 4.5


def test_nothing_moves_for_those_who_want_less_motion():
  page = (ROOT / 'serving' / 'static' / 'index.html').read_text()
  style = re.search(r'<style>(.*?)</style>', page, re.DOTALL)[1]
  still = re.sub(
    r'@media \(prefers-reduced-motion: no-preference\) \{.*?\n\}',
    '',
    style,
    flags=re.DOTALL,
  )
  assert still != style
  assert not re.search(r'animation|transition|scroll-behavior', still)
