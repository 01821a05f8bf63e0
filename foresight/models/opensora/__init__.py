"""Open-Sora 1.2 (arXiv 2412.20404): its ST-DiT, video VAE, noise scheduler and pipeline."""
