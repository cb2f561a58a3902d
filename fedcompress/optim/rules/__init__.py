"""The update rules of the optimizers stand here, one file for each family, as pure functions of gradient and state."""
