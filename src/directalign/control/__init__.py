"""Control words as something that is measured, learned and listened to: `directalign words` and what stands beside it.

Everything here looks at a reward through the contract (`interfaces.Reward`) or, where it says so, at a CLIP's own layers;
nothing here samples or trains a generator. `examples` holds the wanted and unwanted images, `asked` reads which reward is meant.
"""
