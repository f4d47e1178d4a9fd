"""The page on which a trained network can be tried: uploads, what the network says of them, and the server."""
