"""A YARA rule file of the size and kind that collections have: text, hexadecimal and regular-expression strings.

Kinds of strings, modifiers and conditions are those of public collections for Windows malware; the rules themselves are
made up, the same ones every time, and the last of them, `planted`, hits what has both of its strings.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

RULES = 5_000
"""How many rules the file has."""

PLANTED = (b"PlantedMessage %08x", bytes.fromhex("488bc4c3"))
"""What the rule `planted` looks for."""

_PLANTED_RULE = f"""rule planted
{{
    strings:
        $text = "{PLANTED[0].decode()}"
        $code = {{ {PLANTED[1].hex(" ").upper()} }}
    condition:
        uint16(0) == 0x5A4D and all of them
}}
"""

_CONSONANTS, _VOWELS = "bcdfghklmnprstvw", "aeiou"
_FOLDERS = ("Windows", "System32", "drivers", "Users", "Public", "AppData", "Temp", "ProgramData")
_SUFFIXES = (".sys", ".dll", ".exe", ".pdb", ".dat", ".tmp")
_ROUTINES = ("Zw", "Nt", "Ps", "Ke", "Mm", "Ob", "Io", "Ex", "Cm", "Rtl", "Flt", "Se")
_VERBS = ("Create", "Open", "Query", "Set", "Get", "Read", "Write", "Map", "Lookup", "Insert", "Remove", "Register")
_OBJECTS = ("Process", "Thread", "File", "Key", "Section", "Memory", "Object", "Driver", "Device", "Routine", "Token")

_MODIFIERS = ("", " ascii", " wide", " ascii wide", " fullword ascii", " nocase", " ascii wide nocase")

OPCODES = ("48 8B", "48 89", "48 83 EC", "4C 8D", "0F B6", "33 C0", "E8", "FF 15", "48 8D 0D", "85 C0", "0F 84", "C7")
"""How x64 compilers begin instructions; hexadecimal strings of collections consist of such code."""


def write(path: Path, count: int = RULES) -> None:
    """Write the file, the same one each time."""
    chance = random.Random(5)  # noqa: S311 - the same rules each time are wanted
    rules = [*(_rule(chance, number) for number in range(count - 1)), _PLANTED_RULE]
    path.write_text("\n".join(rules), encoding="ascii")


def _rule(chance: random.Random, number: int) -> str:
    strings = [f"        $s{each} = {_string(chance)}" for each in range(chance.randint(3, 10))]
    return "\n".join(
        [
            f"rule {_word(chance).capitalize()}_{_word(chance)}_{number}",
            "{",
            "    meta:",
            f'        description = "Detects {_word(chance)} {_word(chance)}, a {_word(chance)} {_word(chance)}"',
            f'        author = "{_word(chance)}"',
            f'        date = "20{chance.randint(14, 25)}-{chance.randint(1, 12):02}-{chance.randint(1, 28):02}"',
            f'        hash = "{chance.getrandbits(256):064x}"',
            "    strings:",
            *strings,
            "    condition:",
            f"        {_condition(chance, len(strings))}",
            "}",
        ]
    )


def _condition(chance: random.Random, strings: int) -> str:
    several = f"{chance.randint(2, strings)} of ($s*)"
    size = f"filesize < {chance.choice((200, 500, 1000, 4000, 20000))}KB"
    return chance.choice(
        (
            f"uint16(0) == 0x5A4D and {size} and {several}",
            f"uint16(0) == 0x5A4D and {size} and all of them",
            f"uint16(0) == 0x5A4D and uint32(uint32(0x3C)) == 0x4550 and ($s0 or {several})",
            several,
            "all of them",
            f"$s0 and (#s1 > 2 or {several})",
            f"($s0 and $s1) or {several}",
        )
    )


def _string(chance: random.Random) -> str:
    kinds: tuple[Callable[[random.Random], str], ...] = (_text, _code, _expression)
    return chance.choices(kinds, weights=(70, 22, 8))[0](chance)


def _text(chance: random.Random) -> str:
    return f'"{text(chance)}"{chance.choice(_MODIFIERS)}'


def text(chance: random.Random) -> str:
    """Make a text as rules look for it and drivers have it, with its backslashes doubled."""
    return chance.choice(
        (
            "\\\\".join(chance.choice(_FOLDERS) for _ in range(2)) + "\\\\" + _word(chance) + chance.choice(_SUFFIXES),
            chance.choice(_ROUTINES) + chance.choice(_VERBS) + _word(chance).capitalize() + chance.choice(_OBJECTS),
            f"{_word(chance).capitalize()} {_word(chance)} {_word(chance)}: %s",
            f"\\\\Device\\\\{_word(chance).capitalize()}{_word(chance).capitalize()}",
            f"http://{_word(chance)}{_word(chance)}.{chance.choice(('com', 'net', 'org'))}/{_word(chance)}",
            _word(chance) + _word(chance),
        )
    )


def _code(chance: random.Random) -> str:
    pieces = []
    for _ in range(chance.randint(4, 10)):
        pieces.append(chance.choice(OPCODES))
        pieces.append(" ".join(f"{chance.randrange(256):02X}" for _ in range(chance.randint(1, 4))))
        if chance.random() < 0.3:
            pieces.append(chance.choice(("??", "?? ?? ?? ??", "[2-6]", "(74 | 75)", "4?")))
            pieces.append(f"{chance.randrange(256):02X}")
    return f"{{ {' '.join(pieces)} }}"


def _expression(chance: random.Random) -> str:
    return chance.choice(
        (
            f"/{_word(chance)}[a-z0-9]{{4,12}}\\.(sys|dll|exe)/ nocase",
            f"/\\\\Device\\\\{_word(chance).capitalize()}[0-9]{{1,3}}/ wide ascii",
            f"/{_word(chance)}(_|-){_word(chance)}=[0-9a-f]{{8,32}}/",
            f"/{_word(chance).capitalize()}: ?[A-Za-z]{{3,20}}\\\\{_word(chance)}/",
        )
    )


def _word(chance: random.Random) -> str:
    return "".join(chance.choice(_CONSONANTS) + chance.choice(_VOWELS) for _ in range(chance.randint(2, 4)))
