"""The mathematics of Direct-Align: torch alone, pure functions, random generators passed in.

Start with `recovery`. Scalars that belong to a sample (levels, gains, positions) are float64 tensors of shape (b,) and
are cast to the latents' type only where they multiply them.
"""



