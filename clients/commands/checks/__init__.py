"""``fedcompress site doctor`` makes these checks; none of them raises: what is wrong is its result."""
