"""Files of data sets: downloads, archives, image formats, caches."""
