rule flt_send_from_system_thread
{
    meta:
        description = "A driver with a system thread of its own that can send synchronously through the filter manager"
        why = "FltSendMessage attaches the thread to the receiver's process while it copies the message; an APC that arrives then and cannot be delivered stops the machine with bugcheck 0x6 at the detach. Sending from a thread that holds no lock, or asynchronously, avoids it"
        false_positives = "Most antivirus and data-loss filters send messages; the rule names a driver to be looked at, not a defect"
        reference = "WDK, FltSendMessage and KeStackAttachProcess; Windows bugcheck 0x6, INVALID_PROCESS_DETACH_ATTEMPT"
    strings:
        $call = { FF 15 ?? ?? ?? ?? }
        // A prologue that jumps back: linkers place the loop of a thread's routine in front of its entry.
        $back = { (8B EC | 48 83 EC ?? | 48 81 EC ?? ?? 00 00) [0-16] (EB (8? | 9? | A? | B? | C? | D? | E? | F?) | E9 ?? ?? FF FF) }
    condition:
        start_rva >= 0
        and imports matches /(^|,)\w+!FltSendMessage(,|$)/
        and imports matches /(^|,)\w+!(PsCreateSystemThread|IoCreateSystemThread|ExQueueWorkItem|IoQueueWorkItem|IoQueueWorkItemEx|FltQueueGenericWorkItem)(,|$)/
        and (
            $call in (start_rva..start_rva + start_size)
            or ($back in (start_rva..start_rva + 32) and $call in (start_rva - 256..start_rva))
        )
}
