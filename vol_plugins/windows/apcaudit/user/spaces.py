"""The user space of a process: bytes at its addresses, and the place of an address in words."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable

from ..image import Memory
from ..image.structures import read_member
from ..kernel import Kernel
from ..targets import HIGHEST_USER_ADDRESS_X64, Lies, Place
from ..windows import PAGE_SIZE
from .images import IMAGES_KEPT, MappedSection, Sections, UserImage, label_of
from .pages import Page, PageTables, Pte, PteLayout, read_pte_layout
from .vads import TOTAL_BOUND, Vad, VadLayout, VadTree, read_vad_layout

SPACES_KEPT = 256
"""How many processes' user spaces are kept."""

TRIES_BOUND = 4
"""In how many processes the names of an image are looked for."""

PAGES_KEPT = 4096
"""For how many pages of a process it is kept where they are."""

READ_BOUND = 1 << 20
"""How many bytes of user space are read at once; the export table of a large DLL has some 100 KiB."""

PEERS_BOUND, PEERS_TOTAL_BOUND = 1024, 1 << 16
"""In how many processes of the list a page is looked for, and for all pages together."""

COMPARED_BOUND = 16
"""With how many of those that have memory of its kind there it is compared."""

COMPARED = 16
"""How many bytes are compared: a hook or a trampoline is a jump or two."""

_NO_TABLES = "its page tables cannot be read"
_NO_FILE = "the name of a file that it maps cannot be read"
_NO_NAMES = "the header or names in the exports of an image that it maps cannot be read"
_DISORDERED = "the names in the exports of an image that it maps are in no order"
_NO_PROTOTYPE = "whether an image's page is the file's cannot be read"


class UserSpaces:
    """The user spaces of an image's processes, each made when it is first asked for."""

    def __init__(self, kernel: Kernel) -> None:
        memory, symbols = kernel.memory, kernel.symbols
        self.kernel = kernel
        self.memory = memory
        self.layout = read_vad_layout(symbols, memory.pointer_size)
        self.pte_layout = read_pte_layout(symbols)
        self.sections = Sections(memory, symbols, self.layout)
        self.budget = [TOTAL_BOUND]
        # On x86 user space ends where kernel space begins, which /3GB moves.
        self.highest = HIGHEST_USER_ADDRESS_X64 if memory.bits == 64 else kernel.drivers.kernel_start - 1
        self._peers_left = PEERS_TOTAL_BOUND
        self._spaces: OrderedDict[int, UserSpace] = OrderedDict()
        self._images: OrderedDict[tuple[int, int], UserImage] = OrderedDict()
        self._tries: Counter[tuple[int, int]] = Counter()

    def of(self, process: int) -> UserSpace:
        """Return the user space of the process at a virtual address."""
        space = self._spaces.get(process)
        if space is None:
            space = self._spaces[process] = UserSpace(self, process)
            if len(self._spaces) > SPACES_KEPT:
                self._spaces.popitem(last=False)
        return space

    def image(self, space: UserSpace, vad: Vad, section: MappedSection) -> UserImage:
        """Return the image that a VAD maps; what is read of it is shared by processes that have the file's own pages.

        A process that has written to its header or its exports has them read as it maps them.
        """
        own = UserImage(space.read, vad.start, vad.end + 1 - vad.start, section.path)
        if section.control_area is None:
            return own
        key = section.control_area, vad.start
        shared = self._images.get(key)
        if shared is not None and shared.is_cut and self._tries[key] < TRIES_BOUND:
            # Its pages may be in the working set of another process only.
            self._tries[key] += 1
            shared = None
        candidate = own if shared is None else shared
        if not space.has_files_pages(vad, section, candidate.naming):
            return own
        self._images[key] = candidate
        if len(self._images) > IMAGES_KEPT:
            self._images.popitem(last=False)
        return candidate

    def is_elsewhere(self, space: UserSpace, place: Place) -> bool | None:
        """Tell whether other processes have the same bytes at a place that is a process's own; None if not known.

        Of an image's page all that map the file must have them, of other memory one.
        """
        content = space.read(place.address, COMPARED)
        if content is None:
            return None
        of_image = place.lies is Lies.IMAGE
        found, compared = False, 0
        for process, _ in zip(self.kernel.processes.listed(), range(PEERS_BOUND), strict=False):
            if process.address == space.process:
                continue
            self._peers_left -= 1
            if self._peers_left < 0:
                return None
            same = self.of(process.address).has_same_copy(place, content)
            if same is None:
                continue
            found = same
            compared += 1
            if same is not of_image or compared == COMPARED_BOUND:
                break
        return found


class UserSpace:
    """The user space of one process, by the virtual address of its _EPROCESS."""

    def __init__(self, spaces: UserSpaces, process: int) -> None:
        self.process = process
        self._spaces = spaces
        memory: Memory = spaces.memory
        layout: VadLayout = spaces.layout
        entries: PteLayout = spaces.pte_layout
        self._memory = memory
        self.unknown = layout.lacks
        top = None
        if layout.top is not None:
            data = memory.read(process + layout.top.offset, layout.top.size)
            top = None if data is None else int.from_bytes(data, "little")
        if self.unknown is None and not top:
            self.unknown = "its DirectoryTableBase cannot be read" if top is None else "its DirectoryTableBase is 0"
        if self.unknown is None and self.peb == 0:
            self.unknown = "it has no PEB: nothing of it runs in user mode"
        self._tables = PageTables(memory, entries, top or 0)
        self._vads = VadTree(memory, layout, process, spaces.budget, spaces.kernel.drivers.kernel_start)
        self._images: dict[int, UserImage] = {}
        self._physical: dict[int, int | None] = {}
        self._places: dict[int, Place] = {}
        symbols = spaces.kernel.symbols
        enabled = read_member(memory, symbols, "_EPROCESS", "Pcb.Flags.ExecuteEnable", process)
        # Without DEP, which a 32-bit program may do without, or the processor, code runs in any page once it tries.
        self._data_is_data = enabled == 0 and memory.paging.entry_size == 8

    def read(self, address: int, length: int) -> bytes | None:
        """Read bytes at a user address; None unless all of them can be read."""
        if self.unknown is not None or not 0 < length <= READ_BOUND:
            return None
        pieces: list[bytes] = []
        while length > 0:
            step = min(PAGE_SIZE - address % PAGE_SIZE, length)
            page = self.physical(address)
            piece = None if page is None else self._memory.read_physical(page, step)
            if piece is None:
                return None
            pieces.append(piece)
            address += step
            length -= step
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_physical(self, address: int, length: int) -> bytes | None:
        """Read bytes of the physical layer; None unless all of them can be read."""
        return self._memory.read_physical(address, length)

    def physical(self, address: int) -> int | None:
        """Translate a user address, through the prototype PTE where the page is not in the working set."""
        page = address & ~(PAGE_SIZE - 1)
        if page in self._physical:
            found = self._physical[page]
        else:
            found = self._translate(page)
            if len(self._physical) >= PAGES_KEPT:
                self._physical.clear()
            self._physical[page] = found
        return None if found is None else found | address & (PAGE_SIZE - 1)

    def _translate(self, page: int) -> int | None:
        if self.unknown is not None or page > self._spaces.highest:
            return None
        pte = self._tables.find(page)
        if pte.page in (Page.SHARED, Page.UNTOUCHED):
            vad = self._vads.find(page).vad
            shared = None if vad is None or vad.private else self._prototype(vad, page, self._spaces.sections.read(vad))
            return None if shared is None else shared.physical
        return pte.physical

    def _prototype(self, vad: Vad, address: int, section: MappedSection) -> Pte | None:
        """Return what the prototype PTE of an address says, None where it is not known."""
        size = self._memory.paging.entry_size
        at = section.first_pte + (address - vad.start) // PAGE_SIZE * size
        if not section.first_pte or not section.first_pte <= at <= section.last_pte:
            return None
        data = self._memory.read(at, size)
        return None if data is None else self._tables.decode(int.from_bytes(data, "little"))

    def _image(self, vad: Vad, section: MappedSection) -> UserImage:
        image = self._images.get(vad.start)
        if image is None:
            image = self._images[vad.start] = self._spaces.image(self, vad, section)
        return image

    def has_files_pages(self, vad: Vad, section: MappedSection, ranges: Iterable[tuple[int, int]]) -> bool:
        """Tell whether the pages of ranges of an image, by relative addresses, are the file's own and no copies."""
        for start, size in ranges:
            first = vad.start + start - start % PAGE_SIZE
            for page in range(first, min(vad.start + start + size, vad.end + 1), PAGE_SIZE):
                pte = self._tables.find(page)
                if pte.page in (Page.SHARED, Page.UNTOUCHED):
                    continue
                shared = self._prototype(vad, page, section)
                if shared is None or pte.physical is None or pte.physical != shared.physical:
                    return False
        return True

    def place(self, address: int) -> Place:
        """Say what holds a user address."""
        place = self._places.get(address)
        if place is None:
            if len(self._places) >= PAGES_KEPT:
                self._places.clear()
            place = self._places[address] = self._find(address)
        return place

    def _find(self, address: int) -> Place:
        if self.unknown is not None:
            return Place(address, Lies.UNKNOWN, Lies.UNKNOWN.value, why=self.unknown)
        found = self._vads.find(address)
        if found.why is not None:
            return Place(address, Lies.UNKNOWN, Lies.UNKNOWN.value, why=found.why)
        if found.vad is None or address > self._spaces.highest:
            return Place(address, Lies.NOWHERE, Lies.NOWHERE.value)
        vad = found.vad
        section = self._spaces.sections.read(vad)
        image = self._image(vad, section) if vad.image else None
        pte = self._tables.find(address)
        protection, executable = self._protection(address, vad, pte, image)
        lies = Lies.PRIVATE if vad.private else Lies.IMAGE if vad.image else Lies.MAPPED
        module = label_of(section.path)
        own = None if image is None else self._own_page(address, vad, pte, section)
        return Place(
            address,
            lies,
            _text(address, vad, lies, module, protection, image),
            vad.start,
            vad.end,
            module,
            section.path,
            () if image is None else image.names_at(address - vad.start),
            None if image is None else image.bits,
            protection,
            executable,
            pte.page.value,
            own if not own or image is None or (image.moved is False and not vad.fixed_up) else None,
            _gap(pte, section, image, own, address - vad.start),
        )

    def _protection(self, address: int, vad: Vad, pte: Pte, image: UserImage | None) -> tuple[str | None, bool | None]:
        """Return the letters of a page's protection, and whether code can run there."""
        protection = pte.protection
        if pte.page is Page.UNREADABLE:
            return None, None
        if protection is None and image is not None:
            # Every image's VAD allows everything; what its sections are is in the header.
            code = image.holds_code(address - vad.start)
            return ("rx" if code else None), code
        if protection is None:
            protection = vad.protection
        if protection is None:
            return None, None
        if pte.page is Page.VALID and pte.no_execute is None:
            # A processor that knows no such bit runs anything; what Windows meant is in the VAD.
            protection = protection.rstrip("x") + ("x" if "x" in (vad.protection or "") else "")
        if "x" in protection:
            return protection, True
        return protection, False if self._data_is_data else None

    def _own_page(self, address: int, vad: Vad, pte: Pte, section: MappedSection) -> bool | None:
        """Tell whether an image's page is the process's own copy, by its prototype PTE; None if not known."""
        if pte.page in (Page.SHARED, Page.UNTOUCHED):
            return False
        if pte.page is Page.UNREADABLE:
            return None
        shared = self._prototype(vad, address, section)
        if shared is None or shared.page is Page.UNREADABLE:
            return None
        return pte.page is Page.PAGED_OUT or pte.physical != shared.physical

    def is_export(self, place: Place, ordinal: int) -> bool:
        """Tell whether an address of an image is that of an export by its ordinal."""
        vad = self._vads.find(place.address).vad
        image = None if vad is None else self._image(vad, self._spaces.sections.read(vad))
        return image is not None and image.rva_of(ordinal) == place.address - (place.start or 0)

    def symbols_at(self, place: Place) -> tuple[str, ...]:
        """Return the names at exactly an address of an image: exports, else those of its PDB where vol has that."""
        if place.names or place.lies is not Lies.IMAGE:
            return place.names
        vad = self._vads.find(place.address).vad
        if vad is None:
            return ()
        symbols = self._image(vad, self._spaces.sections.read(vad)).symbols
        found = None if symbols is None else symbols.nearest(place.address - vad.start)
        return (found[0],) if found is not None and not found[1] else ()

    def count_private_code(self, place: Place) -> tuple[int, int] | None:
        """Count the other regions of private executable memory, and those like this one; None if unknown."""
        vad = self._vads.find(place.address).vad
        return None if vad is None else self._vads.count_private_code(vad)

    def has_same_copy(self, place: Place, content: bytes) -> bool | None:
        """Tell whether this process has the same bytes where another one has a place of its own.

        None where it does not map the file that the place is of, or that cannot be told.
        """
        here = self.place(place.address)
        if here.lies is not place.lies or here.path != place.path:
            return None
        own = here.own_page if here.lies is Lies.IMAGE else here.executable and not here.writable
        return own if not own else self.read(place.address, len(content)) == content

    @property
    def peb(self) -> int | None:
        """The address of the PEB; None where it cannot be read, 0 for processes that never run in user mode."""
        member = self._spaces.layout.peb
        data = None if member is None else self._memory.read(self.process + member.offset, member.size)
        return None if data is None else int.from_bytes(data, "little")

    def has_run(self) -> bool | None:
        """Tell whether anything has run in user mode: the loader has put its data into the PEB; None if unknown."""
        peb = self.peb
        loader = self._spaces.kernel.symbols.member("_PEB", "Ldr")
        data = self.read(peb + loader.offset, loader.size) if peb and loader is not None else None
        return None if data is None else any(data)


def _gap(pte: Pte, section: MappedSection, image: UserImage | None, own: bool | None, rva: int) -> str | None:
    """Say what of a place could not be read, the most important first."""
    if pte.page is Page.UNREADABLE:
        return _NO_TABLES
    if image is None:
        return None
    if section.path is None:
        return _NO_FILE
    if image.is_cut and not image.names_at(rva):
        return _NO_NAMES
    if image.is_disordered:
        return _DISORDERED
    return _NO_PROTOTYPE if own is None else None


def _text(
    address: int, vad: Vad, lies: Lies, module: str | None, protection: str | None, image: UserImage | None
) -> str:
    if image is not None:
        name = module or f"{vad.start:x}"
        rva = address - vad.start
        nearest = image.nearest(rva)
        if nearest is None:
            return f"{name}+{rva:#x}"
        return f"{name}!{nearest[0]}" + (f"+{nearest[1]:#x}" if nearest[1] else "")
    kind = "private" if lies is Lies.PRIVATE else "mapped"
    return f"{kind} {protection or 'no access' if protection is not None else '?'}" + (f" {module}" if module else "")
