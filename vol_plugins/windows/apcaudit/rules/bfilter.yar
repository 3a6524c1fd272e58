rule bfilter_message_sender
{
    meta:
        description = "Bfilter: a file-system filter driver that sends messages to its service under a fast mutex"
        why = "A kernel APC that is queued to its thread while FltSendMessage attaches it to the service's process cannot be delivered at APC_LEVEL; the detach then stops the machine with bugcheck 0x6"
        false_positives = "None by the exported name; another driver called Bfilter that imports the same two functions"
        reference = "Crash of Windows XP SP3, bugcheck 0x6 in BAVSvc.exe, thread of Bfilter.sys; WDK, FltSendMessage"
    strings:
        $symbol = "ScUnInitExcludePath" fullword
        // A call through the import address table: call [address] on x86, call [rip + displacement] on x64.
        $call = { FF 15 ?? ?? ?? ?? }
        // A prologue that jumps back: linkers place the loop of a thread's routine in front of its entry.
        $back = { (8B EC | 48 83 EC ?? | 48 81 EC ?? ?? 00 00) [0-16] (EB (8? | 9? | A? | B? | C? | D? | E? | F?) | E9 ?? ?? FF FF) }
    condition:
        (driver iequals "bfilter" or $symbol)
        and imports matches /(^|,)\w+!FltSendMessage(,|$)/
        and imports matches /(^|,)\w+!ExAcquireFastMutex(,|$)/
        and (
            start_rva < 0
            or $call in (start_rva..start_rva + start_size)
            or ($back in (start_rva..start_rva + 32) and $call in (start_rva - 256..start_rva))
        )
}
