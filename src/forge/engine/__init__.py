"""The engine: takes requests from a channel, runs steps, and answers with deltas. Knows `forge.interfaces` only."""
