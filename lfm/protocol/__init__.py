"""Every message between client, manager and worker, in one place.  Pure: no clock, socket, file or chance."""
