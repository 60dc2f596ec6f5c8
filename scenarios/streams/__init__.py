"""Streams: how a dataset unfolds over experiences, for every client. One kind a module."""
