"""Pieces of x64 images with unwind data, for stacks to be walked through."""

from __future__ import annotations


def image_of(pieces: dict[int, str]) -> bytes:
    image = bytearray(0x2000)
    for rva, data in pieces.items():
        code = bytes.fromhex(data)
        image[rva : rva + len(code)] = code
    return bytes(image)


#: A function of every kind, each at 0x100 with its unwind data at 0x1000: code, unwind data, and after every
#: instruction of the prologue what it has done: bytes taken, register numbers saved with their offset from the entry's
#: stack pointer, RBP's offset from it.
SMALL = image_of(
    {
        # push rbx; sub rsp, 20h; nop; add rsp, 20h; pop rbx; ret
        0x100: "4053 4883ec20 90 4883c420 5b c3",
        0x1000: "01060200 0632 0230",
    }
)
FRAMED = image_of(
    {
        # push rbp; sub rsp, 200h; lea rbp, [rsp+20h]; nop; lea rsp, [rbp+1e0h]; pop rbp; ret
        0x100: "55 4881ec00020000 488d6c2420 90 488da5e0010000 5d c3",
        0x1000: "010d0425 0d03 08014000 0150",
    }
)
SAVING = image_of(
    {
        # mov [rsp+8], rsi (the caller's home space); sub rsp, 38h; nop; mov rsi, [rsp+40h]; add rsp, 38h; ret
        0x100: "4889742408 4883ec38 90 488b742440 4883c438 c3",
        0x1000: "01090300 09640800 0962",
    }
)
