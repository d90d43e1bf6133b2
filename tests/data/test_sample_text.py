"""The built-in sample is always the same, large enough, and tells no lies."""

import hashlib
import re

from gpt.data.sample_text import (
  GOODS,
  PEOPLE,
  RIDDLES,
  counted,
  number_word,
  sample_text,
)

NUMBERS = {number_word(n): n for n in range(1, 100)}


def test_sample_is_the_same_everywhere():
  # A changed sample changes every quickstart number: change this knowingly.
  digest = hashlib.sha256(sample_text().encode()).hexdigest()
  assert digest == (
    'de2d653badf06475d552201612af6c7558545e8dcbbdf6a9ea9cdbe6b30da1f2'
  )


def test_sample_is_large_enough_and_plain():
  text = sample_text()
  assert len(text) >= 300_000
  assert text.isascii() and '\r' not in text and text.endswith('\n')
  assert '<|' not in text and '{' not in text and '  ' not in text
  assert len(text.split('\n\n***\n\n')) > 500


def test_sums_are_right():
  sums = re.findall(
    r'^(\d+) ([+x-]) (\d+) = (\d+)\. (.+)\.$', sample_text(), re.M
  )
  assert len(sums) > 300
  words = {'+': 'and', '-': 'less', 'x': 'times'}
  for a, sign, b, result, sentence in sums:
    a, b, result = int(a), int(b), int(result)
    assert result == {'+': a + b, '-': a - b, 'x': a * b}[sign]
    assert sentence.lower() == (
      f'{number_word(a)} {words[sign]} {number_word(b)} is '
      f'{number_word(result)}'
    )


def test_prices_and_purses_add_up():
  pattern = (
    r'In \w+ purse \w+ had ([\w-]+) penn(?:y|ies)\.(?:.|\n)*?'
    r'([\w-]+) times ([\w-]+) is ([\w-]+), so \w+ paid ([\w-]+) '
    r'penn(?:y|ies), and ([\w-]+) penn(?:y|ies) w'
  )
  found = re.findall(pattern, sample_text())
  assert len(found) > 40
  for row in found:
    purse, n, price, cost, paid, left = (
      NUMBERS.get(word.lower(), 0) for word in row
    )
    assert n * price == cost == paid and purse - paid == left


def test_people_keep_their_trades():
  text = sample_text()
  for name, (_, trade, _, animal, _, _) in PEOPLE.items():
    assert set(re.findall(rf'\b{name} the (\w+)', text)) == {trade}
    pets = re.findall(rf'"My (\w+) was playing with [^"]+" {name} said', text)
    assert set(pets) <= {animal}


def test_riddles_are_answered():
  text = sample_text()
  for question, answer in RIDDLES:
    part = text[text.index(question) :].split('that was right')[0]
    assert f'"You are {answer},"' in part


def test_counting_words():
  assert counted(1, 'loaves') == 'one loaf'
  assert counted(1, 'herrings') == 'one herring'
  assert counted(31, 'pennies') == 'thirty-one pennies'
  assert counted(0, 'eggs') == 'no eggs'
  assert number_word(99) == 'ninety-nine'
  assert all(counted(2, noun).endswith(noun) for noun in GOODS)
