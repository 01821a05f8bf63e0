"""From trace sets to a policy: labels, data, training, baselines and the model card."""
