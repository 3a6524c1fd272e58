rule kernel_apc_injector
{
    meta:
        description = "A driver that queues APCs and names what loads a DLL into a process"
        why = "Drivers inject code into processes by queuing a user APC whose NormalRoutine is, or calls, the loader; nothing else needs both"
        false_positives = "Antivirus, EDR and anti-cheat drivers that inject their own DLL; System Informer's driver"
        reference = "WDK has no documentation of KeInitializeApc; BlackBone and injdrv are public sources of this technique; MITRE ATT&CK T1055.004"
    strings:
        $ldr_load_dll = "LdrLoadDll" ascii wide fullword
        $load_library = /LoadLibrary(Ex)?[AW]/ ascii wide fullword
        // Functions that are looked up while running instead of being imported.
        $initialize = "KeInitializeApc" wide fullword
        $insert = "KeInsertQueueApc" wide fullword
    condition:
        any of ($ldr_load_dll, $load_library)
        and (imports matches /(^|,)\w+!KeInitializeApc(,|$)/ or $initialize)
        and (imports matches /(^|,)\w+!KeInsertQueueApc(,|$)/ or $insert)
        and driver != "nt"
}

rule kernel_apc_hidden_queuer
{
    meta:
        description = "Code in no listed module that queues APCs"
        why = "A driver that is not in the list of modules was mapped by hand or unlinked itself, and APCs are how such code gets into processes"
        false_positives = "None known where the list of modules could be read whole"
        reference = "MITRE ATT&CK T1014 and T1055.004"
    strings:
        $initialize = "KeInitializeApc" ascii wide fullword
        $insert = "KeInsertQueueApc" ascii wide fullword
    condition:
        hidden
        and (imports matches /(^|,)\w+!KeInsertQueueApc(,|$)/ or ($initialize and $insert))
}
