"""Files on disk, read and written so that neither a crash nor a stranger's file does harm.

paths   paths as users give them, and files that are opened only if they are regular
plain   small text, YAML and JSON files, read within limits and without executing them
events  files of scalars and texts for TensorBoard
atomic  writes after which a reader sees the old file or the new one, never half of one
"""
