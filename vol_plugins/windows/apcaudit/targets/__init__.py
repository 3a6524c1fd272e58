"""What user APCs would run, as values: places, targets, and the functions of user mode that judge them."""
