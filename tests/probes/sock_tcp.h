/* An established TCP connection over the loopback, for the probes about them. */
static int client, server, listener;
static struct sockaddr_in at = {.sin_family = AF_INET};
static void connect_pair(void) {
    socklen_t n = sizeof at;
    at.sin_port = 0;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = MUST(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)), client = MUST(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    MUST(bind(listener, (void *)&at, sizeof at)), MUST(listen(listener, 5)), MUST(getsockname(listener, (void *)&at, &n));
    MUST(connect(client, (void *)&at, sizeof at));
    server = MUST(accept4(listener, NULL, NULL, SOCK_CLOEXEC));
}
