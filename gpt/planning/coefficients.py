"""Constants of law.py, fitted to 91 runs by launch.bench.law."""

COEFFICIENTS = {
  'floor': 0.3176,
  'per_parameter': 0.21838,
  'parameter_power': 0.031182,
  'per_byte': 0.21308,
  'byte_power': 0.081582,
  'useful_passes': 5.6461,
  'parameters_per_byte': 0.74508,
  'entropy_power': 1.0722,
  'yield_power': 15.243,
  'level': 0.16168,
  'pieces': -0.0353,
  'per_entry': 18.172,
}
