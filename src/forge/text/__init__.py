"""Text and tokens: tokenizers, chat templates, incremental detokenising. Knows nothing of models or requests."""
