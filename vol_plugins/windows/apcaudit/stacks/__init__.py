"""What a thread was doing: the frames of its kernel stack, from where its registers were saved outwards."""
