"""User address spaces: what processes map below the kernel, with page tables, VADs and modules of their own."""
