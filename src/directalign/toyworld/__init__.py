"""The embedded world: a captioned world of pictures, tiny diffusers pipelines, a biased reward,
honest judges."""
