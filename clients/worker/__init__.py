"""The warm worker of a site: gRPC service, rank launcher, durable session."""
