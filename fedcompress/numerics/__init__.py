"""Bit-exact helpers for all methods: bfloat16, counter-based random bits, seeded bases, scaling without overflow.

Each gives equal bits on every machine, by integer operations or by float operations in a fixed order.
"""
