"""Constants of law.py, fitted to 79 runs by launch.bench.law."""

COEFFICIENTS = {
  'floor': 0.35817,
  'per_parameter': 0.12854,
  'parameter_power': 0.049591,
  'per_byte': 0.30647,
  'byte_power': 0.074692,
  'useful_passes': 4.3197,
  'parameters_per_byte': 2.3441,
  'entropy_power': 1.0439,
  'yield_power': 13.511,
  'level': 0.1607,
  'pieces': -0.010157,
}
