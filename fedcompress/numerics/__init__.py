"""Bit-exact helpers that the maths packages share: bfloat16, counter-based random bits, seeded bases."""
