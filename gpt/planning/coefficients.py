"""Constants of law.py, fitted to 53 runs by launch.bench.law."""

COEFFICIENTS = {
  'floor': 0.26016,
  'per_parameter': 0.27756,
  'parameter_power': 0.12696,
  'per_byte': 0.15788,
  'byte_power': 0.51026,
  'useful_passes': 9.3919,
  'parameters_per_byte': 0.30333,
  'entropy_power': 1.226,
  'trend': 2.4539,
  'level': -0.22673,
  'pieces': 0.0034346,
}
