"""What others reach over HTTP: the OpenAI API, and the pages that show a store."""
