"""Files and weights: what is written is what is read, by us and by transformers, and damage is named."""
