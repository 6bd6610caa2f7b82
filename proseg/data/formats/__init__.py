"""One module for each format of image files: `look(path, file)`, `read(path, file)` and the errors of its damage."""
