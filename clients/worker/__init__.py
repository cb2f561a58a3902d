"""The warm worker of a site: a gRPC service, the launcher of its ranks, and the runner of rounds.

``service`` says how a round passes through the processes of a site, and what happens when one of them dies.
"""
