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
