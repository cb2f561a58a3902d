"""Holds the bit-exact helpers of all methods: bfloat16, counter-based random bits, seeded bases, safe scaling.

Each gives equal bits on every machine, by integer operations or by float operations in a fixed order.
"""
