"""The torch side of the optimizers is here: sharding under ZeRO and FSDP2, checkpoints, construction."""
