"""Texts that are hard for tokenizers, shared by several test files."""

from hypothesis import strategies as st

from gpt.data.sample_text import sample_text
from gpt.tokenizers import build_tokenizer

CHAT = ('<|user|>', '<|assistant|>')
# All characters, with the difficult ones more often.
TEXT = st.text(
  st.one_of(
    st.sampled_from(list(' \n\t\r\u2581\x00\ufeff\U0001f642ab1.<|>')),
    st.characters(exclude_categories=['Cs']),
  ),
  max_size=60,
)


def train_spm():
  return build_tokenizer('sentencepiece', [sample_text()[:60_000]], 500, CHAT)
