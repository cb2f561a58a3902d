"""The modules are the torch side of the optimizers: sharding under ZeRO and FSDP2, checkpoints, construction."""
