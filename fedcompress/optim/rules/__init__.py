"""Update rules of optimizers, one file for each family, as pure functions of gradient and state."""
