"""Each module has the update rules of one family of optimizers, as pure functions of gradient and state."""
