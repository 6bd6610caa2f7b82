"""What the library costs, measured against plain rivals; run from the repository's root, see README.md."""
