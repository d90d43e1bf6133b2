"""Fields of other servers' APIs that would change the answer, refused by name.

Ignoring them would answer a question that nobody asked. Each has values that
ask for nothing, which are accepted. Fields that no answer depends on (user,
metadata, store, service_tier, cache_prompt, priority, ...) are not listed: they
are ignored, like unknown ones.
"""

from collections.abc import Iterable, Mapping
from typing import Any

OFF = (False, 0, '', [], {})  # Not used is the default of most fields.

# OpenAI's API.
OPENAI = {
  'audio': OFF,
  'modalities': (['text'], []),
  'web_search_options': (),
}
# Constraints on the output.
CONSTRAINTS = {
  'bad_words': OFF,
  'function_call': ('none', *OFF),
  'logits_processors': OFF,
  'structural_tag': OFF,
  'tool_choice': ('none', 'auto', *OFF),
  'tools': OFF,
}
# Those that OpenAI's routes support (structured.py): {} is a schema.
STRUCTURED = {
  'grammar': OFF,
  'guided_choice': OFF,
  'guided_grammar': OFF,
  'guided_json': (False, 0, '', []),
  'guided_json_object': OFF,
  'guided_regex': OFF,
  'json_schema': (False, 0, '', []),
  'regex': OFF,
  'response_format': ({'type': 'text'},),
  'structured_outputs': OFF,
}
# vLLM's API: docs.vllm.ai, "OpenAI-compatible server", extra parameters.
VLLM = {
  'chat_template': OFF,
  'chat_template_kwargs': OFF,
  'continue_final_message': (),
  'documents': OFF,
  'early_stopping': OFF,
  'length_penalty': (1,),
  'prompt_embeds': OFF,
  'return_token_ids': OFF,
  'return_tokens_as_token_ids': OFF,
  'skip_special_tokens': (True,),
  'thinking_token_budget': (),
  'use_beam_search': OFF,
}
# llama.cpp's API: tools/server/README.md, POST /completion.
LLAMA_CPP = {
  'dry_multiplier': OFF,
  'dynatemp_range': OFF,
  'image_data': OFF,
  'lora': OFF,
  'mirostat': OFF,
  'post_sampling_probs': OFF,
  'response_fields': OFF,
  'return_tokens': OFF,
  't_max_predict_ms': OFF,
  'tfs_z': (1,),
  'top_n_sigma': (-1, 0),
  'typical_p': (1,),
  'xtc_probability': OFF,
}
# The same setting under a name that this server does not know.
RENAMED = {
  'max_new_tokens': 'max_tokens',
  'n_predict': 'max_tokens',
  'n_probs': 'logprobs',
  'num_predict': 'max_tokens',
  'repeat_penalty': 'repetition_penalty',
}

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
  **OPENAI,
  **CONSTRAINTS,
  **VLLM,
  **LLAMA_CPP,
  **dict.fromkeys(RENAMED, ()),
}


def find(
  body: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]]
) -> tuple[str, str] | None:
  """(name, end of a sentence) of a field that asks for what we lack."""
  for name in body.keys() & neutral.keys():
    if body[name] is not None and not is_one_of(body[name], neutral[name]):
      instead = RENAMED.get(name)
      hint = f'; use {instead}.' if instead else '.'
      return name, f'is not supported{hint}'
  return None


def is_one_of(value: Any, values: Iterable[Any]) -> bool:
  """Whether JSON knows the value among `values`: there, false is not 0."""
  kind = isinstance(value, bool)
  return any(value == v and kind == isinstance(v, bool) for v in values)


def properties(neutral: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
  """The fields in JSON Schema: only their neutral values are valid."""
  return {
    name: {
      'description': f'Not supported; use {RENAMED[name]}.'
      if name in RENAMED
      else 'Not supported.',
      'enum': [None, *values],
    }
    for name, values in sorted(neutral.items())
  }
