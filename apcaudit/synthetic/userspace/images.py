"""Image files as sections: their pages, shared by all who map them, control areas, and prototype PTEs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from apcaudit.synthetic import pe
from apcaudit.synthetic.intermediate import Pdb
from apcaudit.synthetic.machine import Machine, Module, SceneError
from apcaudit.synthetic.pages import PAGE
from apcaudit.synthetic.user import UserImage
from apcaudit.synthetic.userspace.page_tables import UserPages
from apcaudit.synthetic.userspace.vads import Section

#: IO_TYPE_FILE (wdm.h).
_IO_TYPE_FILE = 5


@dataclass(frozen=True, slots=True)
class Bases:
    """Where the images of a kernel's programs lie; ours, within what Windows uses."""

    programs: int
    libraries: int


#: DLLs of 32-bit programs and of 64-bit ones; 64 KiB apart at least, as Windows aligns them.
_BASES_32 = Bases(0x400000, 0x75000000)
_BASES_64_OLD = Bases(0x13F000000, 0x77000000)
_BASES_64 = Bases(0x7FF640000000, 0x7FF810000000)
_STRIDE = 0x40000


@dataclass(frozen=True, slots=True)
class Mapped:
    """An image file with its pages: the first one's physical address, and each page's protection."""

    image: UserImage
    base: int
    physical: int
    protections: tuple[str, ...]
    section: Section

    @property
    def path(self) -> str:
        """The file's path, as a file object has it."""
        return f"{self.image.path}\\{self.image.name}"

    @property
    def size(self) -> int:
        """Size in bytes."""
        return len(self.protections) * PAGE


@dataclass(slots=True)
class Images:
    """The image files of a machine, each laid out when the first process maps it."""

    machine: Machine
    _mapped: dict[str, Mapped] = field(default_factory=dict)
    _next: dict[Bases, int] = field(default_factory=dict)

    def get(self, image: UserImage, pages: UserPages, *, program: bool) -> Mapped:
        """Give an image with its pages; `pages` makes its prototype PTEs."""
        found = self._mapped.get(image.key)
        if found is None:
            found = self._mapped[image.key] = self._place(image, pages, program=program)
        elif found.image != image:
            raise SceneError(f"two images named {image.key}")
        return found

    def _place(self, image: UserImage, pages: UserPages, *, program: bool) -> Mapped:
        machine = self.machine
        if image.key.lower() in machine.modules:
            raise SceneError(f"{image.key}: a driver of this name is there")
        base = self._base(image, program=program) if image.base is None else image.base
        digest = hashlib.sha256(image.name.encode()).hexdigest().upper()
        file = pe.PeImage(
            image.name,
            image.size,
            is_64bit(machine, image),
            Pdb(f"{image.key}.pdb", "A9C0DE" + digest[:26], 1),
            machine.kernel.version,
            base,
            image.exports,
            code={rva: pe.body(is_64bit(machine, image)) for rva in image.functions.values()} | dict(image.code),
            forwards=image.forwards,
            ordinals={ordinal: image.functions[name] for ordinal, name in image.ordinals.items()},
            user=True,
        )
        physical = pages.take_frames(image.size // PAGE)
        for rva, data in pe.lay_out(file).items():
            if rva + len(data) > image.size:
                raise SceneError(f"{image.name}: {rva:#x} lies outside of the image")
            pages.write_frames(physical + rva, data)
        protections = ["READONLY"] * (image.size // PAGE)
        for part in pe.sections(file):
            protection = "EXECUTE_READ" if part.executable else "WRITECOPY" if part.writable else "READONLY"
            for page in range(part.start // PAGE, (part.start + part.size) // PAGE):
                protections[page] = protection
        section = place_section(machine, pages, physical, protections, f"{image.path}\\{image.name}", image.absent)
        machine.modules[image.key.lower()] = Module(image.name, base, image.size, {**image.exports, **image.functions})
        machine.address_of[f"image:{image.key}"] = base
        return Mapped(image, base, physical, tuple(protections), section)

    def _base(self, image: UserImage, *, program: bool) -> int:
        machine = self.machine
        bases = _BASES_32
        if is_64bit(machine, image):
            bases = _BASES_64 if machine.kernel.version >= (6, 2, 0) else _BASES_64_OLD
        if program:
            # Programs lie side by side, since their names stand for one address each.
            at = self._next.get(Bases(bases.programs, 0), bases.programs)
            self._next[Bases(bases.programs, 0)] = at + _STRIDE
            return at
        at = self._next.get(bases, bases.libraries)
        self._next[bases] = at + _STRIDE
        return at


def is_64bit(machine: Machine, image: UserImage) -> bool:
    """Tell whether an image is of 64 bits."""
    return machine.kernel.is_64bit if image.bits is None else image.bits == 64


def place_section(
    machine: Machine,
    pages: UserPages,
    physical: int,
    protections: list[str],
    path: str | None,
    absent: tuple[int, ...] = (),
) -> Section:
    """Make a section of consecutive frames, of the file at `path` or of the page file, and its prototype PTEs.

    Of the pages of `absent`, relative addresses, the prototype PTE says that they are in the file.
    """
    memory, pool = machine.memory, machine.user_pool
    entry_size, count = pages.entries.size, len(protections)
    prototypes = pool.allocate(entry_size * count, b"MmSt")
    for number, protection in enumerate(protections):
        entry = pages.entries.valid(physical + number * PAGE, protection)
        memory.write_scalar(prototypes + number * entry_size, entry_size, entry)
    # Subsections lie behind their control area.
    control_size, subsection_size = memory.size("_CONTROL_AREA"), memory.size("_SUBSECTION")
    runs = _runs(protections)
    control = pool.allocate(control_size + subsection_size * len(runs), b"MmCi" if path else b"MmCa")
    segment = pool.allocate(memory.size("_SEGMENT"), b"MmSm")
    file_object = 0
    if path is not None:
        file_object = machine.address_of.get(f"file:{path}", 0) or _place_file(machine, path)
        memory.write(control, "_CONTROL_AREA", "u.Flags.File", 1)
        memory.write(control, "_CONTROL_AREA", "u.Flags.Image", 1)
        # _EX_FAST_REF since Vista: references taken in advance are in the lowest bits.
        fast = memory.has("_CONTROL_AREA", "FilePointer.RefCnt")
        memory.write_pointer(control + memory.offset("_CONTROL_AREA", "FilePointer"), file_object | (5 if fast else 0))
    memory.write(control, "_CONTROL_AREA", "Segment", segment)
    memory.write(control, "_CONTROL_AREA", "NumberOfMappedViews", 1)
    for path_, value in (
        ("ControlArea", control),
        ("TotalNumberOfPtes", count),
        ("SizeOfSegment", count * PAGE),
        ("PrototypePte", prototypes),
    ):
        memory.write(segment, "_SEGMENT", path_, value)
    for number, (first, length) in enumerate(runs):
        at = control + control_size + number * subsection_size
        memory.write(at, "_SUBSECTION", "ControlArea", control)
        memory.write(at, "_SUBSECTION", "SubsectionBase", prototypes + first * entry_size)
        memory.write(at, "_SUBSECTION", "PtesInSubsection", length)
        if number + 1 < len(runs):
            memory.write(at, "_SUBSECTION", "NextSubsection", at + subsection_size)
        for page in sorted({rva // PAGE for rva in absent} & set(range(first, first + length))):
            entry = pages.entries.subsection(at, protections[page])
            memory.write_scalar(prototypes + page * entry_size, entry_size, entry)
    last = prototypes + (count - 1) * entry_size
    return Section(control, control + control_size, prototypes, last, file_object)


def _runs(protections: list[str]) -> list[tuple[int, int]]:
    """Give runs of pages of one protection: first page and count. The headers are a run of their own."""
    runs = [(0, 1)]
    for number, protection in enumerate(protections[1:], 1):
        if number > 1 and protection == protections[number - 1]:
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((number, 1))
    return runs


def _place_file(machine: Machine, path: str) -> int:
    memory = machine.memory
    body = machine.user_pool.place_object("File", memory.size("_FILE_OBJECT"))
    memory.write(body, "_FILE_OBJECT", "Type", _IO_TYPE_FILE)
    memory.write(body, "_FILE_OBJECT", "Size", memory.size("_FILE_OBJECT"))
    machine.user_pool.string(body, "_FILE_OBJECT", "FileName", path)
    machine.address_of[f"file:{path}"] = body
    return body
