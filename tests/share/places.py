"""Places to move things to and from, without a network: another store, and one that lies."""

from lamina.core.errors import MissingBlobError


class Shelf:
    """A parcel's content as a `BlobSource`, in memory; change `things` to make it lie."""

    def __init__(self, store, parcel):
        everything = (*parcel.blobs, *parcel.manifests, *parcel.evidence)
        self.things = {item.digest: b"".join(parcel.stream(store, item)) for item in everything}
        self.about = {}
        for item in parcel.evidence:
            self.about.setdefault(parcel.subjects[item.digest], []).append(item)
        self.asked = []

    def manifest(self, digest):
        return self._read(digest)

    def blob(self, item, *, offset=0):
        data = self._read(item.digest)
        for start in range(offset, len(data), 1000):
            yield data[start : start + 1000]

    def referrers(self, digest):
        return tuple(self.about.get(digest, ()))

    def _read(self, digest):
        self.asked.append(digest)
        if digest not in self.things:
            raise MissingBlobError(f"no {digest} here")
        return self.things[digest]
