"""Data sets that are cut into many files, from which samples are read as they are needed: tars and Parquet."""
