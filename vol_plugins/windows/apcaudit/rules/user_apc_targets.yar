rule reflective_loader_opening
{
    meta:
        description = "The first bytes of a DLL that loads itself, in memory that a user APC would run"
        why = "A DLL that was written into a process and not loaded by Windows begins with code in its own MZ header, or with code in front of it, that calls its loader; an APC to it is how injectors start it"
        false_positives = "Tools for penetration tests, and products that load parts of themselves with such a loader"
        reference = "Public sources of ReflectiveDLLInjection, of Metasploit's reflective DLL payloads and of sRDI; MITRE ATT&CK T1620 and T1055.004"
    strings:
        // MZ as pop r10 (x64) or dec ebp; pop edx (x86); then the image's own address, the loader's, and a call of it.
        $header_x64_relative = { 4D 5A 41 52 55 48 89 E5 48 81 EC 20 00 00 00 48 8D 1D ?? ?? FF FF 48 (89 DF | 81 C3) }
        $header_x64_call = { 4D 5A 41 52 55 48 89 E5 48 83 EC 20 48 83 E4 F0 E8 00 00 00 00 5B 48 81 C3 ?? ?? ?? ?? FF D3 }
        $header_x86 = { 4D 5A E8 00 00 00 00 5B [0-2] 52 45 55 89 E5 [0-2] 81 C3 ?? ?? ?? ?? FF D3 }
        // In front of the image: call to the next instruction, and the image's address from where that is.
        $front_x64 = { E8 00 00 00 00 59 49 89 C8 (48 81 C1 | BA) ?? ?? ?? ?? }
        $front_x86 = { E8 00 00 00 00 58 55 89 E5 89 C2 (05 | 68) ?? ?? ?? ?? }
    condition:
        process != "" and any of them
}

rule beacon_opening
{
    meta:
        description = "The first bytes of a beacon's or stager's shellcode, in memory that a user APC would run"
        why = "Stagers and beacons that come as shellcode begin with a handful of well-known instructions that align the stack and find the functions of Windows; an APC to them is how injectors start them"
        false_positives = "Tools for penetration tests; nothing else is known to begin so"
        reference = "Public sources of Metasploit's block_api and of Donut's loader; MITRE ATT&CK T1055.004 and T1106"
    strings:
        // cld; and rsp, -16; call over the function that finds others by hashes.
        $block_api_x64 = { FC 48 83 E4 F0 E8 (C0 | C8 | CC) 00 00 00 }
        // cld; call over it; pushad.
        $block_api_x86 = { FC E8 (82 | 86 | 89 | 8F) 00 00 00 60 }
        // pop rcx; xor eax, eax; 48h, which is dec eax on x86 and a prefix on x64; a jump that only x86 takes.
        $donut = { 59 31 C0 48 0F 88 ?? ?? 00 00 }
    condition:
        process != "" and any of them
}
