"""The HTTP side: a gateway people talk to, and one worker process per loaded variant."""
