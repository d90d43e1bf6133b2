"""Constants of law.py, fitted to 87 runs by launch.bench.law."""

COEFFICIENTS = {
  'floor': 0.36143,
  'per_parameter': 0.17734,
  'parameter_power': 0.038553,
  'per_byte': 0.22338,
  'byte_power': 0.083938,
  'useful_passes': 4.9906,
  'parameters_per_byte': 0.9938,
  'entropy_power': 1.0627,
  'yield_power': 14.704,
  'level': 0.15823,
  'pieces': -0.040199,
  'per_entry': 19.358,
}
