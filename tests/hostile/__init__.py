"""A harness of hostile inputs: what is read may be damaged, made by a stranger, or meant to hang or to execute."""
