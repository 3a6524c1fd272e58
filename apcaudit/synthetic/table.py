"""Facts tables: a kernel's structure layouts as text that a person can read and check.

    source Microsoft public PDB ntkrnlmp.pdb of build 10.0.19041.804
    pointer 8
    struct _KAPC 0x58
      0x0 Type u8
      0x10 ApcListEntry _LIST_ENTRY

Member types are those of `layout.Layout`; an enumeration's line is `value name`.
"""

from __future__ import annotations

from apcaudit.synthetic.layout import Enum, Layout, Struct


def write_table(layout: Layout, source: list[str]) -> str:
    """Write a layout as a facts table; `source` says line by line where the facts are from."""
    lines = [f"source {line}" for line in source]
    lines.append(f"pointer {layout.pointer_size}")
    for struct in sorted(layout.structs.values(), key=lambda each: each.name):
        lines.append(f"{'union' if struct.union else 'struct'} {struct.name} {struct.size:#x}")
        members = sorted(struct.members.items(), key=lambda item: (item[1][0], item[0]))
        lines += [f" {offset:x} {name} {type_text}" for name, (offset, type_text) in members]
    for enum in sorted(layout.enums.values(), key=lambda each: each.name):
        lines.append(f"enum {enum.name} {enum.scalar}")
        values = sorted(enum.values.items(), key=lambda item: (item[1], item[0]))
        lines += [f" {value} {name}" for name, value in values]
    return "\n".join(lines) + "\n"


def read_table(text: str) -> Layout:
    """Read a facts table.

    Raises:
        ValueError: a line is not of the form that `write_table` gives.
    """
    structs: dict[str, Struct] = {}
    enums: dict[str, Enum] = {}
    pointer_size = 0
    members: dict[str, tuple[int, str]] = {}
    values: dict[str, int] = {}
    in_enum = False
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0] == "source":
            continue
        try:
            if line[0] == " " and in_enum:
                values[words[1]] = int(words[0])
            elif line[0] == " ":
                members[words[1]] = (int(words[0], 16), words[2])
            elif words[0] == "pointer":
                pointer_size = int(words[1])
            elif words[0] == "enum":
                values, in_enum = {}, True
                enums[words[1]] = Enum(words[1], words[2], values)
            elif words[0] in ("struct", "union"):
                members, in_enum = {}, False
                structs[words[1]] = Struct(words[1], int(words[2], 16), members, words[0] == "union")
            else:
                raise ValueError(words[0])
        except (IndexError, ValueError) as error:
            raise ValueError(f"facts table, line {number}: {line.strip()!r}") from error
    return Layout(pointer_size, structs, enums)
