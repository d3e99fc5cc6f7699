"""Documents → token ids → splits → batches."""
