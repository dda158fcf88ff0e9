"""The four steps of the paper's training: generator, latents, class prior, noise."""
