"""The HTTP side: a gateway for the clients, and one worker process for each loaded variant."""
