"""What a long measurement has finished, kept in a file, so that a killed one goes on where it stopped."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spectrum_bench.sampling.reading import Damaged, check, parse_json, read_text
from spectrum_bench.sampling.records import write_atomically

LARGEST = 2**24  # bytes of a file of finished parts


class Finished:
    """The finished parts of one measurement by name.

    Attributes:
        passes: network passes that they took.
    """

    def __init__(self, path: Path | None = None, of: Mapping[str, Any] | None = None) -> None:
        """Read what an earlier, killed measurement has left.

        Args:
            path: the file. None: nothing is kept.
            of: what is measured: model, prompts, versions. Parts of another measurement are left aside.

        Raises:
            Damaged: there is another file in this place.
        """
        self.path, self.of = path, dict(of or {})
        self.passes, self.parts = 0, dict[str, Any]()
        if path is None or not path.exists():
            return
        try:
            kept = parse_json(read_text(path, LARGEST))
            check(dict[str, Any], kept)
            passes, parts, of = kept["passes"], kept["parts"], kept["of"]
            check(int, passes)
            check(dict[str, Any], parts)
        except (Damaged, KeyError, TypeError, ValueError) as error:
            raise Damaged(f"{path} holds no finished parts ({error}): delete it") from None
        if of == json.loads(json.dumps(self.of)):
            self.passes, self.parts = passes, parts

    def once(self, name: str, passes: int, measure: Callable[[], Any]) -> Any:
        """A part, measured if it is not there. It consists of lists and numbers, and comes back from the file bit for
        bit."""
        if name not in self.parts:
            self.parts[name] = measure()
            self.passes += passes
            if self.path is not None:
                kept = {"of": self.of, "passes": self.passes, "parts": self.parts}
                write_atomically(self.path, json.dumps(kept).encode())
        return self.parts[name]

    def delete(self) -> None:
        """The measurement is written elsewhere."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
