"""A process with one loaded model. It answers the gateway over HTTP."""
