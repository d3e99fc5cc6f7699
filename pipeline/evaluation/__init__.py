"""How good a model is: negative log-likelihood and what follows from it, baselines, the report."""
