"""An HTTP service for trained runs, with a page to play with, and a page that follows a training.

`app` makes the service of `bpfree serve`, and `watch` makes that of `bpfree watch`; `server` runs either of them. These
modules import packages of the extra `serve`, so `packages.require_packages` comes first.
"""
