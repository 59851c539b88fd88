"""What a model learns: adapters (low-rank pairs beside its matrices), and how they are trained."""
