"""Constants of law.py, fitted to 5 runs by launch.bench.law."""

COEFFICIENTS = {
  'floor': 0.65677,
  'per_parameter': 0.08557,
  'parameter_power': 0.30726,
  'per_byte': 0.24626,
  'byte_power': 0.39493,
  'useful_passes': 6.4331,
  'parameters_per_byte': 2.9059,
  'entropy_power': 0.75891,
  'trend': -0.48601,
  'level': 0.097069,
  'pieces': 0.0075727,
}
