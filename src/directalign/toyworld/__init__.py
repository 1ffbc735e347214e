"""The toy world: captioned scenes, tiny diffusers pipelines, biased rewards, independent judges."""
