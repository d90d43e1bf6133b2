"""The built-in sample: little stories from a town that does not exist.

It exists so that training works with no file and no network. The text is
generated, always the same: a seeded grammar over a small fixed world. People
keep their trade, home, animal and favourite food, sums come out right, riddles
have their answers, so a small model has something real to learn at every
scale, from spelling to who owns the goat.
"""

import functools
import random

TARGET_CHARS = 300_000
SEED = 1

# name: (pronouns, trade, home, animal, favourite food, manner)
_HE, _SHE = ('he', 'him', 'his'), ('she', 'her', 'her')
PEOPLE = {
  'Mara': (_SHE, 'baker', 'the old mill', 'goat', 'plum cake', 'kindly'),
  'Tobin': (
    _HE,
    'ferryman',
    'the river house',
    'heron',
    'smoked eel',
    'slowly',
  ),
  'Isolde': (
    _SHE,
    'clockmaker',
    'the bell tower',
    'owl',
    'honey bread',
    'precisely',
  ),
  'Fenn': (
    _HE,
    'shepherd',
    'the high meadow',
    'sheepdog',
    'goat cheese',
    'softly',
  ),
  'Brida': (_SHE, 'smith', 'the forge', 'pony', 'onion soup', 'loudly'),
  'Oswin': (
    _HE,
    'schoolmaster',
    'the schoolhouse',
    'tortoise',
    'apple pie',
    'gravely',
  ),
  'Petra': (
    _SHE,
    'gardener',
    'the walled garden',
    'hedgehog',
    'pea soup',
    'cheerfully',
  ),
  'Lucan': (
    _HE,
    'fiddler',
    'the Blue Lantern',
    'magpie',
    'ginger biscuits',
    'merrily',
  ),
  'Nell': (
    _SHE,
    'postwoman',
    'the post house',
    'terrier',
    'hot chestnuts',
    'quickly',
  ),
  'Garrick': (
    _HE,
    'woodcutter',
    'the edge of the forest',
    'mule',
    'mushroom stew',
    'shyly',
  ),
  'Sabine': (_SHE, 'weaver', 'the mill lane', 'cat', 'pear tart', 'gently'),
  'Rolf': (
    _HE,
    'fisherman',
    'the harbour wall',
    'gull',
    'fried herring',
    'gruffly',
  ),
}
PLACES = (
  'under the stone bridge',
  'behind the chapel',
  'beside the well',
  'in the tall grass',
  'on the harbour steps',
  'in the empty barn',
  'by the crooked gate',
  'at the foot of the oak',
  'inside the hollow log',
  'on the market stall',
  'in the wheelbarrow',
  'under the blackberry hedge',
)
THINGS = (
  'brass key',
  'red scarf',
  'silver whistle',
  'copper kettle',
  'wooden spoon',
  'green hat',
  'little drum',
  'leather purse',
  'blue umbrella',
  'tin lantern',
  'pair of spectacles',
  'winter glove',
)
WEATHER = {
  'spring': (
    'a soft rain was falling',
    'the wind smelled of wet earth',
    'the first swallows had come back',
    'the ditches ran with water',
  ),
  'summer': (
    'the sun stood high over the roofs',
    'the air was warm and still',
    'bees hummed in the lime trees',
    'dust lay white on the road',
  ),
  'autumn': (
    'yellow leaves blew along the lane',
    'the mornings were grey',
    'smoke hung over the gardens',
    'geese were crying overhead',
  ),
  'winter': (
    'snow lay deep on the roofs',
    'the river was frozen hard',
    'the stars were sharp and many',
    'icicles hung from the pump',
  ),
}
DAYS = ('Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday')
TIMES = (
  'Early in the morning',
  'Before breakfast',
  'At noon',
  'Late in the afternoon',
  'Towards evening',
  'After supper',
)
GOODS = {
  'apples': 2,
  'pears': 3,
  'candles': 4,
  'loaves': 5,
  'eggs': 1,
  'buttons': 1,
  'herrings': 3,
  'ribbons': 2,
}
RIDDLES = (
  ('I have hands but I cannot clap.', 'a clock'),
  ('I have teeth but I never bite.', 'a comb'),
  ('I have a bed but I never sleep.', 'the river'),
  ('I follow you all day and leave you at night.', 'your shadow'),
  ('The more you take from me, the larger I grow.', 'a hole'),
  ('I am full of holes, yet I hold water.', 'a sponge'),
  ('I speak every language when you call, and I have no mouth.', 'an echo'),
  ('I go up when the rain comes down.', 'an umbrella'),
  ('I am taken from the mine and shut in wood.', 'a pencil'),
  ('I have one eye and I see nothing.', 'a needle'),
)
SAYINGS = (
  'A borrowed ladder is the tallest.',
  'Slow bread is good bread.',
  'The goat knows the gate.',
  'Rain does not read the calendar.',
  'Two small lanterns beat one large moon.',
  'Who mends the net eats the fish.',
  'A quiet bell keeps its voice.',
  'Every road is longer in new shoes.',
  'Count the eggs, then the hens.',
  'A kind word needs no cart.',
)
UNITS = (
  'no',
  'one',
  'two',
  'three',
  'four',
  'five',
  'six',
  'seven',
  'eight',
  'nine',
  'ten',
  'eleven',
  'twelve',
  'thirteen',
  'fourteen',
  'fifteen',
  'sixteen',
  'seventeen',
  'eighteen',
  'nineteen',
)
TENS = (
  '',
  '',
  'twenty',
  'thirty',
  'forty',
  'fifty',
  'sixty',
  'seventy',
  'eighty',
  'ninety',
)


def number_word(n: int) -> str:
  """English word for 0 <= n <= 99 ('no' for 0: 'no eggs')."""
  if n < 20:
    return UNITS[n]
  return TENS[n // 10] + (f'-{UNITS[n % 10]}' if n % 10 else '')


def counted(n: int, noun: str) -> str:
  """'one egg', 'two eggs': `noun` is the plural."""
  singular = {'loaves': 'loaf', 'pennies': 'penny'}.get(noun, noun[:-1])
  return f'{number_word(n)} {singular if n == 1 else noun}'


def _article(word: str) -> str:
  return f'{"an" if word[0] in "aeiou" else "a"} {word}'


class _Teller:
  """Draws from the world; only random() is used, whose values are fixed."""

  def __init__(self, seed: int):
    self._random = random.Random(seed).random

  def below(self, n: int) -> int:
    return int(self._random() * n)

  def pick(self, options):
    options = tuple(options)
    return options[self.below(len(options))]

  def people(self, n: int) -> list[str]:
    names, chosen = list(PEOPLE), []
    for _ in range(n):
      chosen.append(names.pop(self.below(len(names))))
    return chosen

  def season(self) -> tuple[str, str]:
    season = self.pick(WEATHER)
    return season, self.pick(WEATHER[season])

  def quoted(self) -> str:
    """A saying that stands before 'said': a comma at its end."""
    return self.pick(SAYINGS)[:-1] + ','

  def opening(self, name: str) -> str:
    _, trade, home, animal, _, _ = PEOPLE[name]
    season, weather = self.season()
    day, time = self.pick(DAYS), self.pick(TIMES)
    return self.pick(
      (
        f'It was {season}, and {weather}. {name} the {trade} lived at {home} '
        f'with {_article(animal)}.',
        f'One {day} in {season} {weather}. {time} {name} the {trade} came out '
        f'of {home} and looked at the sky.',
        f'{time} on {_article(season)} day, when {weather}, {name} the {trade} '
        f'set out from {home}. The {animal} came along.',
        f'{name} was the {trade}, and everyone knew {PEOPLE[name][0][2]} '
        f'{animal}. That {day} {weather}.',
      )
    )

  def closing(self, name: str) -> str:
    he, _, his = PEOPLE[name][0]
    food = PEOPLE[name][4]
    return self.pick(
      (
        f'That evening there was {food}, and {name} slept well.',
        f'"{self.quoted()}" said {name}, and {he} went home to {his} {food}.',
        f'And {name} laughed, because {he} had known it all along.',
        f'Since then people in Larkhaven say: {self.pick(SAYINGS)}',
        f'Then {name} lit the lamp, and the day was over.',
      )
    )

  def lost(self) -> str:
    """Something is lost; one neighbour does not know, another does."""
    owner, first, second = self.people(3)
    (he, _, his), _, _, animal, _, _ = PEOPLE[owner]
    thing, place = self.pick(THINGS), self.pick(PLACES)
    wrong = self.pick(p for p in PLACES if p != place)
    thief = PEOPLE[second][3]
    lines = [
      f'The {thing.title()}',
      '',
      f'{self.opening(owner)} But {his} {thing} was gone.',
      '',
      f'"Have you seen my {thing}?" {he} asked {first} the {PEOPLE[first][1]}.',
      '',
      f'"I have not," {first} said {PEOPLE[first][5]}. "Have you looked '
      f'{wrong}?"',
      '',
      f'{owner} looked {wrong}, but there was nothing there'
      + self.pick(
        ('.', f', only the {animal} asleep.', ' except a puddle and a snail.')
      ),
      '',
      f'Then {second} the {PEOPLE[second][1]} came by. "My {thief} was '
      f'playing with {_article(thing)}," {second} said {PEOPLE[second][5]}. '
      f'"Look {place}."',
      '',
      f'And {place} it was. {owner} thanked {second} and gave '
      f'{PEOPLE[second][0][1]} some {PEOPLE[owner][4]}. '
      f'{self.closing(owner)}',
    ]
    return '\n'.join(lines)

  def market(self) -> str:
    """Buying and selling; the sums are right."""
    buyer, seller = self.people(2)
    he, _, his = PEOPLE[buyer][0]
    noun = self.pick(GOODS)
    n, price = 2 + self.below(8), GOODS[noun]
    cost = n * price
    purse = cost + self.below(10)
    pay = counted(cost, 'pennies')
    have = counted(purse, 'pennies')
    left = counted(purse - cost, 'pennies')
    each = counted(price, 'pennies')
    return '\n'.join(
      [
        f'{buyer} at the Market',
        '',
        f'{self.opening(buyer)} In {his} purse {he} had {have}.',
        '',
        f'"How much are the {noun}?" {he} asked {seller}.',
        '',
        f'"{each.capitalize()} each," said {seller} the {PEOPLE[seller][1]} '
        f'{PEOPLE[seller][5]}.',
        '',
        f'"Then I will take {number_word(n)}," said {buyer}. '
        f'{number_word(n).capitalize()} times {number_word(price)} is '
        f'{number_word(cost)}, so {he} paid {pay}, and {left} '
        f'{"was" if purse - cost == 1 else "were"} left. '
        f'{self.closing(buyer)}',
      ]
    )

  def play(self) -> str:
    """A dialogue in the form of a play."""
    names = self.people(2 + self.below(2))
    season, weather = self.season()
    place = self.pick(PLACES)
    lines = [f'[{season.capitalize()}. {self.pick(TIMES)} {place}.]', '']
    used: list[int] = []
    for turn in range(4 + self.below(4)):
      name = names[turn % len(names)]
      other = names[(turn + 1) % len(names)]
      mine, theirs = PEOPLE[name], PEOPLE[other]
      if turn == 0:
        said = self.pick(
          (
            f'Good day to you, {other}. Do you see how {weather}?',
            f'{other}! What brings you here from {theirs[2]}?',
            f'Is that your {theirs[3]}, {other}, or is it mine?',
          )
        )
      else:
        options = (
          (
            f'I have been at {mine[2]} since dawn,\nand not one soul came by '
            f'but the {mine[3]}.'
          ),
          f'They say a {theirs[1]} never rests.\nIs that true, {other}?',
          f'Sit down and have some {mine[4]}.\nThere is enough for all of us.',
          f'{self.pick(SAYINGS)}\nMy mother used to say so.',
          (
            f'I remember how {self.season()[1]},\nand only my {mine[3]} was '
            'with me.'
          ),
          f'Speak {theirs[5]}, {other}, as you always do.',
          f'I would give my {self.pick(THINGS)}\nfor a plate of {mine[4]}.',
          f'You are the best {theirs[1]} in Larkhaven,\nand the only one.',
          f'Last {self.pick(DAYS)} I found {_article(self.pick(THINGS))}\n'
          f'{self.pick(PLACES)}. Is it yours?',
          f'My {mine[3]} and your {theirs[3]}\nwere seen {self.pick(PLACES)}.',
        )
        topics = [t for t in range(len(options)) if t not in used]
        used.append(self.pick(topics))
        said = options[used[-1]]
      lines += [f'{name.upper()}:', said, '']
    lines.append(f'[{self.pick(names)} goes home.]')
    return '\n'.join(lines)

  def letter(self) -> str:
    """A letter from one neighbour to another."""
    writer, reader = self.people(2)
    mine, theirs = PEOPLE[writer], PEOPLE[reader]
    season, weather = self.season()
    a, b = 1 + self.below(9), 1 + self.below(9)
    noun = self.pick(GOODS)
    return '\n'.join(
      [
        f'Dear {reader},',
        '',
        f'it is {season} here at {mine[2]}. Yesterday {weather}. '
        + self.pick(
          (
            f'My {mine[3]} sends greetings to your {theirs[3]}.',
            f'I often think of you at {theirs[2]}.',
            f'The {mine[3]} is well, and so am I.',
          )
        ),
        f'Last {self.pick(DAYS)} I put {counted(a, noun)} in a basket, and '
        f'then {number_word(b)} more, which makes {number_word(a + b)}. '
        + self.pick(
          (
            f'Please come and fetch them; there will be {mine[4]}.',
            f'You may have them all, if you bring some {theirs[4]}.',
            f'A {theirs[1]} can surely use them.',
          )
        ),
        '',
        'Your friend,',
        f'{writer} the {mine[1]}',
      ]
    )

  def riddle(self) -> str:
    """Riddles at the inn, with their answers."""
    asker, *guessers = self.people(3)
    lines = [
      f'On {self.pick(DAYS)} evening they sat in the Blue Lantern, and '
      f'{asker} asked {self.pick(("a riddle", "two riddles"))}.',
      '',
    ]
    first = self.below(len(RIDDLES))
    second = (first + 1 + self.below(len(RIDDLES) - 1)) % len(RIDDLES)
    count = 2 if 'two' in lines[0] else 1
    for (question, answer), guesser in zip(
      (RIDDLES[first], RIDDLES[second])[:count], guessers
    ):
      wrong = self.pick(a for _, a in RIDDLES if a != answer)
      lines += [f'"{question} What am I?"', '']
      if self.below(2):
        lines += [
          f'"You are {wrong}," said {guessers[-1]}. But that was wrong.',
          '',
        ]
      lines += [
        f'"You are {answer}," said {guesser} the '
        f'{PEOPLE[guesser][1]} {PEOPLE[guesser][5]}, and that was '
        'right.',
        '',
      ]
    return '\n'.join([*lines, self.closing(asker)])

  def lesson(self) -> str:
    """Oswin's school: sums in words and figures."""
    pupil, other = [n for n in self.people(3) if n != 'Oswin'][:2]
    lines = [
      f'In the schoolhouse Oswin {self.pick(("wrote", "chalked"))} '
      'sums on the board.',
      '',
    ]
    for _ in range(3 + self.below(4)):
      a, b = 1 + self.below(12), 1 + self.below(12)
      kind = self.below(3)
      if kind == 0:
        word, sign, result = 'and', '+', a + b
      elif kind == 1:
        a, b = max(a, b) + 1, min(a, b)
        word, sign, result = 'less', '-', a - b
      else:
        a, b = 1 + a % 9, 1 + b % 9
        word, sign, result = 'times', 'x', a * b
      words = (
        f'{number_word(a).capitalize()} {word} {number_word(b)} is '
        f'{number_word(result)}'
      )
      lines.append(f'{a} {sign} {b} = {result}. {words}.')
    lines += [
      '',
      f'"{self.quoted()}" said Oswin gravely, and '
      f'{pupil} and {other} ran home.',
    ]
    return '\n'.join(lines)


@functools.cache
def sample_text() -> str:
  """About 300,000 characters of ASCII text, the same on every machine.

  Pieces of a few hundred characters follow each other, with a line of three
  asterisks between them.
  """
  teller = _Teller(SEED)
  kinds = (
    teller.lost,
    teller.market,
    teller.play,
    teller.letter,
    teller.riddle,
    teller.lesson,
    teller.lost,
    teller.play,
  )
  pieces, size = [], 0
  while size < TARGET_CHARS:
    piece = teller.pick(kinds)()
    pieces.append(piece)
    size += len(piece) + 7
  return '\n\n***\n\n'.join(pieces) + '\n'
