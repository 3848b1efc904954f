"""HTTP: the OpenAI API over a host's stacks, keys and limits, metrics, logs, the server, and the
pages that show a store."""
