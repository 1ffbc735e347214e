"""How every embedded asset is made, from seeds alone: `directalign world build` runs these trainings in order."""
