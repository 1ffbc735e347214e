"""Scripts of the repository: rebuilding the toy world, writing numbers into documents."""
