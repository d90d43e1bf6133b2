"""Constants of law.py, fitted to 86 runs by launch.bench.law."""

COEFFICIENTS = {
  'floor': 0.38008,
  'per_parameter': 0.17368,
  'parameter_power': 0.042342,
  'per_byte': 0.21456,
  'byte_power': 0.091024,
  'useful_passes': 5.4933,
  'parameters_per_byte': 0.98896,
  'entropy_power': 1.0603,
  'yield_power': 14.261,
  'level': 0.15089,
  'pieces': -0.047424,
  'per_entry': 21.588,
}
