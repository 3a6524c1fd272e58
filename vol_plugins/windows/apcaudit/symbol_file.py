"""Symbol files are input too: their JSON, read within a bound and with one error for whatever is wrong with it."""

from __future__ import annotations

import json
import lzma
import zipfile
import zlib
from typing import IO, Any

SIZE_BOUND = 256 << 20
"""The largest symbol file that is read, in bytes once unpacked; those of Windows 11 have some 30 MiB."""


class SymbolFileError(ValueError):
    """A symbol file that cannot be used: the text says why."""


def load(stream: IO[bytes]) -> Any:
    """Read the JSON of an opened symbol file, of which no more is unpacked than the bound.

    Raises:
        SymbolFileError: it is too large, damaged, or no JSON object.
        OSError: it cannot be read.
    """
    try:
        data = stream.read(SIZE_BOUND + 1)
        if len(data) > SIZE_BOUND:
            raise SymbolFileError(f"it has more than {SIZE_BOUND >> 20} MiB")
        document = json.loads(data)
    except (EOFError, lzma.LZMAError, zipfile.BadZipFile, zlib.error) as error:
        raise SymbolFileError(f"it is damaged: {error}") from error
    except RecursionError as error:
        raise SymbolFileError("it nests too deep") from error
    except SymbolFileError:
        raise
    except ValueError as error:
        raise SymbolFileError(f"it is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise SymbolFileError("it is no JSON object")
    return document
