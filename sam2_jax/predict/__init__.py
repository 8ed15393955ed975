"""Use: predictors on the host, numpy in and out."""
