"""Traffic is counted here: bytes of whole messages, and bytes on the link between a site and the SuperLink."""
