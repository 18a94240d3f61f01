"""One hash for everything that names content: fingerprints of rows, settings and columns."""

import hashlib
import json
from typing import Any


def json_hash(value: Any) -> str:
    """SHA-256 of a value as JSON, names sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
