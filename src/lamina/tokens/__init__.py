"""Text to token ids and back: chat templates, tool calls, loss masks, batches."""
