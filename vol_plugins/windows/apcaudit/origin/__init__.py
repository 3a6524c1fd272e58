"""Who queued an APC: the IRP, timer, thread or driver behind a KAPC, evidence and inference kept apart."""
