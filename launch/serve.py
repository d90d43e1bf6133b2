"""Serve a trained model over HTTP, with OpenAI's API.

    python -m launch.serve --workdir=runs/quickstart
    python -m launch.serve --workdir=runs/l --port=9000 --slots=16
    python -m launch.serve --model=smollm2

Answers on http://127.0.0.1:8080 once every program is compiled; the page at /
tries it out. Keys come from the environment: RGPT_API_KEY=key1,key2.
"""

import logging
import os
import pathlib

from absl import flags

from gpt.errors import UserError
from launch import cli, common_flags, pretrained

WORKDIR = common_flags.workdir('Directory of the run to serve.')
MODEL = pretrained.define('to serve')
WHICH = common_flags.which()
BASE = common_flags.base()
HOST = flags.DEFINE_string('host', '127.0.0.1', 'Address to listen on.')
PORT = flags.DEFINE_integer(
  'port',
  8080,
  'Port to listen on; 0 takes a free one.',
  lower_bound=0,
  upper_bound=65535,
)
SLOTS = flags.DEFINE_integer(
  'slots',
  0,
  'Texts generated at once; 0: 4 on a CPU, 32 on a GPU.',
  lower_bound=0,
  upper_bound=1024,
)
PRECISION = common_flags.precision()
MAX_QUEUE = flags.DEFINE_integer(
  'max_queue',
  64,
  'Requests that may wait for a slot; more get a 503.',
  lower_bound=0,
)
MAX_PER_CLIENT = flags.DEFINE_integer(
  'max_per_client',
  0,
  'Requests in flight per key, or per address; more get a 429. 0: no limit.',
  lower_bound=0,
)
MODEL_NAME = flags.DEFINE_string(
  'model_name', '', "The model's name; by default the workdir's."
)
STRICT_MODEL = flags.DEFINE_bool(
  'strict_model', False, 'Answer requests for any other model with a 404.'
)
ADAPTER = flags.DEFINE_multi_string(
  'adapter',
  [],
  'NAME=DIRECTORY of a LoRA run whose base is the model served; requests '
  'choose it by its name. May be repeated.',
)
CONTEXT_OVERFLOW = flags.DEFINE_enum(
  'context_overflow',
  'slide',
  ['slide', 'exact', 'stop', 'error'],
  'At the end of the context: move the window by half or by one token (as '
  'RandyGPT does), end the text, or refuse the request. Requests may choose.',
)
PREFIX_CACHE_MB = flags.DEFINE_integer(
  'prefix_cache_mb',
  256,
  'Memory for keys and values of earlier prompts: one that begins alike, such '
  'as the next turn of a conversation, starts sooner. 0: off.',
  lower_bound=0,
)
API_KEY = flags.DEFINE_string(
  'api_key',
  '',
  'Key that clients must send. It is visible in the process list: prefer '
  'RGPT_API_KEY or --api_key_file.',
)
API_KEY_FILE = flags.DEFINE_string(
  'api_key_file', '', 'File with one key per line.'
)
REQUEST_TIMEOUT = flags.DEFINE_float(
  'request_timeout', 600.0, 'Seconds a request may take.', lower_bound=0.001
)
QUEUE_TIMEOUT = flags.DEFINE_float(
  'queue_timeout',
  60.0,
  'Seconds a request may wait for a slot.',
  lower_bound=0.001,
)
READ_TIMEOUT = flags.DEFINE_float(
  'read_timeout',
  5.0,
  'Seconds a client may leave a stream unread.',
  lower_bound=0.001,
)
MAX_TOKENS_LIMIT = flags.DEFINE_integer(
  'max_tokens_limit',
  0,
  'Largest max_tokens of a request; more get a 400. 0: no limit.',
  lower_bound=0,
)
BODY_LIMIT = flags.DEFINE_integer(
  'body_limit', 1 << 20, 'Largest request body in bytes.', lower_bound=1
)
BODY_TIMEOUT = flags.DEFINE_float(
  'body_timeout',
  30.0,
  'Seconds a client may take to send a request.',
  lower_bound=0.001,
)
DRAIN_TIMEOUT = flags.DEFINE_float(
  'drain_timeout',
  10.0,
  'Seconds running requests get at shutdown.',
  lower_bound=0.0,
)
ALLOWED_HOSTS = flags.DEFINE_list(
  'allowed_hosts',
  [],
  'Accepted names in the Host header besides localhost; * for any. By default '
  'localhost alone on a loopback address, and any name on others.',
)
CORS_ORIGINS = flags.DEFINE_list(
  'cors_origins', [], 'Origins of web pages that may use the API; * for any.'
)


def read_keys() -> tuple[str, ...]:
  """The keys from the environment, the key file and the flag."""
  given = {}  # source -> texts
  if os.environ.get('RGPT_API_KEY'):
    given['RGPT_API_KEY'] = os.environ['RGPT_API_KEY'].split(',')
  if API_KEY_FILE.value:
    try:
      text = pathlib.Path(API_KEY_FILE.value).read_text(encoding='utf-8-sig')
    except (OSError, UnicodeDecodeError) as e:
      raise UserError(
        f'cannot read --api_key_file={API_KEY_FILE.value}: {e}'
      ) from e
    given[f'--api_key_file={API_KEY_FILE.value}'] = text.split('\n')
  if API_KEY.value:
    logging.getLogger('rgpt.serve').warning(
      '--api_key is visible to every user of this machine (ps); '
      'RGPT_API_KEY and --api_key_file are not'
    )
    given['--api_key'] = [API_KEY.value]
  keys = []
  for where, texts in given.items():
    found = [text.strip() for text in texts if text.strip()]
    if not found:  # The server would silently be open to everybody.
      raise UserError(f'{where} holds no key')
    keys += found
  return tuple(keys)


def set_up_log() -> logging.Logger:
  """Writes the logs of the server, of gpt and of uvicorn to stderr."""
  handler = logging.StreamHandler()
  handler.setFormatter(
    logging.Formatter('%(asctime)s %(levelname)s %(message)s')
  )
  levels = {
    'rgpt': logging.INFO,
    'gpt': logging.WARNING,
    'gpt.kernels': logging.INFO,
    'uvicorn': logging.WARNING,
  }
  for name, level in levels.items():
    logger = logging.getLogger(name)
    logger.setLevel(level)
    logger.handlers = [handler]
    logger.propagate = False
  return logging.getLogger('rgpt.serve')


def main(_: list[str]) -> None:
  chosen = pretrained.choose(MODEL(), WORKDIR.value)
  log = set_up_log()
  from serving.http import access
  from serving.options import Options, parse_adapters
  from serving.server import bind, serve

  keys = read_keys()
  loopback = access.is_loopback(HOST.value)
  if not loopback and not keys:
    log.warning(
      '%s can be reached from other machines, and no key is set: anybody '
      'there can use this server; set RGPT_API_KEY',
      HOST.value,
    )
  sock = bind(HOST.value, PORT.value)  # It may fail, and the rest takes time.

  import jax

  from gpt.devices import setup_devices

  setup_devices(1)
  loaded = chosen.load(WHICH.value, BASE.value)
  workdir = chosen.workdir
  slots = SLOTS.value or (4 if jax.default_backend() == 'cpu' else 32)
  model_name = MODEL_NAME.value or workdir.resolve().name
  adapters = parse_adapters(ADAPTER.value, model_name)
  options = Options(
    model_name=model_name,
    strict_model=STRICT_MODEL.value,
    adapters=adapters,
    slots=slots,
    precision=PRECISION.value,
    max_queue=MAX_QUEUE.value,
    max_per_client=MAX_PER_CLIENT.value,
    context_overflow=CONTEXT_OVERFLOW.value,
    prefix_cache=PREFIX_CACHE_MB.value << 20,
    request_timeout=REQUEST_TIMEOUT.value,
    queue_timeout=QUEUE_TIMEOUT.value,
    read_timeout=READ_TIMEOUT.value,
    max_tokens_limit=MAX_TOKENS_LIMIT.value,
    body_limit=BODY_LIMIT.value,
    body_timeout=BODY_TIMEOUT.value,
    drain_timeout=DRAIN_TIMEOUT.value,
    keys=keys,
    allowed_hosts=access.allowed_hosts(ALLOWED_HOSTS.value, loopback),
    cors_origins=tuple(CORS_ORIGINS.value),
  )
  host, port = sock.getsockname()[:2]
  host = f'[{host}]' if ':' in host else host
  print(
    f'{loaded.name} ({loaded.which}, step {loaded.step}) on '
    f'http://{host}:{port}',
    flush=True,
  )
  serve(loaded, workdir, WHICH.value, options, sock)


if __name__ == '__main__':
  cli.run(main)
