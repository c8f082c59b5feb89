// Writes the number of the pass into each page of its memory, in order, and looks whether that is still so at the next
// pass: memory of two instants would show. Now and then it maps pages anew. Answers each byte with what it found.
#include <pthread.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
enum { PAGES = 12288, WORDS = 4096 / sizeof(long) };
static volatile long broken, passes;
static void *writer(void *memory) {
    volatile long *words = memory;
    for (long pass = 1;; pass++) {
        for (long page = 0; page < PAGES; page++) {
            if (words[page * WORDS] != pass - 1 || words[page * WORDS + WORDS - 1] != pass - 1) broken++;
            if (page % 1024 == pass % 1024)
                mmap((void *)(words + page * WORDS), 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
            words[page * WORDS] = words[page * WORDS + WORDS - 1] = pass;
        }
        passes = pass;
    }
}
int main(void) {
    void *memory = mmap(0, PAGES * 4096l, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pthread_t thread;
    char c;
    pthread_create(&thread, 0, writer, memory);
    while (read(0, &c, 1) == 1) {
        for (long at = passes; passes < at + 2;) usleep(1000);
        printf("%ld broken\n", broken);
        fflush(stdout);
    }
}
