"""A ClientApp that sends back what it got."""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedcompress.flower import from_records, to_records

app = ClientApp()


@app.train()
def handle(message: Message, context: Context) -> Message:
    """The same payload."""
    _, payload = from_records(message.content)
    return Message(to_records({"status": "ok", "site": "echo"}, payload), reply_to=message)
