rule shellcode_apc_by_hash
{
    meta:
        description = "Code that looks up the functions that queue an APC by hashes of their names"
        why = "Shellcode has no imports: that of the EternalBlue lineage finds KeInitializeApc and KeInsertQueueApc in nt's exports by a hash, to run its payload in a process"
        false_positives = "Signature databases of security products that carry the same constants as data"
        reference = "Rotate-right-by-13 additive hash of the function's name, as in the public kernel shellcode for MS17-010 and its descendants; computed from the names"
    strings:
        // Hashes as 32-bit constants, little-endian.
        $ke_initialize_apc = { C4 5C 19 6D }
        $ke_insert_queue_apc = { 34 46 CC AF }
        $ps_get_current_process = { 78 7C F4 DB }
        $zw_allocate_virtual_memory = { EA 99 6E 57 }
        $ps_get_thread_teb = { 3E 4C F8 CE }
    condition:
        ($ke_initialize_apc and $ke_insert_queue_apc)
        or (any of ($ke_*) and any of ($ps_*, $zw_*))
}

rule shellcode_finds_kernel
{
    meta:
        description = "Code that searches backwards in memory for the kernel's image"
        why = "Shellcode in the kernel starts from an address in nt, which the processor's interrupt or system call entry gives, and walks back page by page to the MZ header"
        false_positives = "Kernel debuggers and some protection drivers do the same; both are listed modules"
        reference = "Public analyses of DoublePulsar and of the EternalBlue and BlueKeep kernel payloads; Intel SDM volume 4 for the numbers of the registers"
    strings:
        // sub register, 1000h; then, within a few instructions, cmp word [register], 'MZ'.
        $walk_x64 = { (48 2D | 48 81 E? | 49 81 E?) 00 10 00 00 [0-12] 66 [0-1] 81 3? 4D 5A }
        $walk_x86 = { (2D | 81 E?) 00 10 00 00 [0-12] 66 81 3? 4D 5A }
        // mov rax, gs:[38h] and its like: the interrupt descriptor table by way of the KPCR, x64 and x86.
        $idt_x64 = { 65 (48 | 4C) 8B ?? 25 38 00 00 00 }
        $idt_x86 = { 64 (A1 | 8B ??) 38 00 00 00 }
        // mov ecx, IA32_LSTAR or IA32_SYSENTER_EIP; then rdmsr.
        $lstar = { B9 82 00 00 C0 [0-4] 0F 32 }
        $sysenter = { B9 76 01 00 00 [0-4] 0F 32 }
    condition:
        any of ($walk_*) and any of ($idt_*, $lstar, $sysenter) and driver != "nt"
}
