"""Where the cameras are: a ChArUco board, a session of pictures of it, one joint adjustment, and what it is worth."""
