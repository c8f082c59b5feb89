/* A set of Landlock rules, not yet applied. */
#include "probe.h"
#include <linux/landlock.h>

static int fd;
static void setup(void) {
    struct landlock_ruleset_attr at = {.handled_access_fs = LANDLOCK_ACCESS_FS_EXECUTE};
    fd = syscall(SYS_landlock_create_ruleset, &at, sizeof at, 0);
    if (fd < 0) skip("no Landlock here");
}
static void check(void) {
    struct landlock_path_beneath_attr b = {.allowed_access = LANDLOCK_ACCESS_FS_EXECUTE, .parent_fd = MUST(open("/", O_PATH | O_CLOEXEC))};
    MUST(syscall(SYS_landlock_add_rule, fd, LANDLOCK_RULE_PATH_BENEATH, &b, 0));
    close(b.parent_fd);
}
static void mutate(void) { close(fd); }
