/* kill_all_but PID: sends SIGKILL to every process but init, itself and PID, until none of them runs. */
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int dead(int pid) {
    char path[64], line[512];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *f = fopen(path, "r");
    if (!f) return 1;
    char *p = fgets(line, sizeof line, f) ? strrchr(line, ')') : NULL;
    fclose(f);
    return !p || p[2] == 'Z' || p[2] == 'X';
}
int main(int argc, char **argv) {
    int spare = argc > 1 ? atoi(argv[1]) : 0;
    for (int round = 0; round < 500; round++) {
        int living = 0;
        DIR *d = opendir("/proc");
        if (!d) return 2;
        for (struct dirent *e; (e = readdir(d));) {
            int pid = atoi(e->d_name);
            if (pid <= 1 || pid == getpid() || pid == spare || dead(pid)) continue;
            living++;
            kill(pid, SIGKILL);
        }
        closedir(d);
        if (!living) return 0;
        usleep(2000);
    }
    return 1;
}
