"""What the tests and the self-test share: sample data, references, and ways to run kernels without a GPU."""
