"""Tools for developing Inkwell; nothing here is installed in the image."""
