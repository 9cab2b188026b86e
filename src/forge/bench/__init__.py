"""The load generator behind ``forge bench``: offers requests to any OpenAI-compatible server and says how it did.

`settings` says what is asked, `load` when, `record` turns what arrives into one request's figures, `stats` into a
stage's, `report` into a table and JSON, `plot` into a picture. Knows nothing of Forge's server or engine.
"""
