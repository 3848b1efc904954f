"""The store: an OCI image layout on disk. Blobs, manifests, refs, collect, verify.

Handles bytes and knows no torch. `layout.Store` is the door; each other module adds one layer of
verbs to it: blobs -> manifests -> refs -> objects.
"""
