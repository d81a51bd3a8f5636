// How fast this machine reads memory: threads that sum a buffer, each its own part, several times.
//   read_bandwidth THREADS BYTES SECONDS   prints, in GB/s, the median of all passes for 4 KiB pages ("small") and for
//                                          2 MiB pages ("huge", 0 where the kernel gives none), each read from front
//                                          to back ("plain") and at 8 places at once ("streams")
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { MAX_THREADS = 256, MAX_PASSES = 10000, HUGE_PAGE = 2 << 20, LANES = 64, STREAMS = 8 };

static int num_threads;
static size_t num_bytes;
static double wanted_seconds;
static const char* buffer;
static pthread_barrier_t barrier;
static uint64_t sink;
static volatile int more;
static double rates[2][MAX_PASSES];  // plain, streams
static int passes;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static uint64_t sum(const uint64_t* data, size_t count) {
    uint64_t lanes[LANES] = {0};  // independent sums, which the compiler keeps in vector registers
    for (size_t i = 0; i + LANES <= count; i += LANES) {
        for (int lane = 0; lane < LANES; ++lane) {
            lanes[lane] += data[i + lane];
        }
    }
    uint64_t total = 0;
    for (int lane = 0; lane < LANES; ++lane) {
        total += lanes[lane];
    }
    return total;
}

static uint64_t sum_streams(const uint64_t* data, size_t count) {
    enum { SHARE = LANES / STREAMS };  // lanes of a stream: one cache line
    uint64_t lanes[LANES] = {0};
    const size_t length = count / STREAMS / SHARE * SHARE;
    for (size_t i = 0; i < length; i += SHARE) {
        for (int stream = 0; stream < STREAMS; ++stream) {
            for (int lane = 0; lane < SHARE; ++lane) {
                lanes[stream * SHARE + lane] += data[stream * length + i + lane];
            }
        }
    }
    uint64_t total = 0;
    for (int lane = 0; lane < LANES; ++lane) {
        total += lanes[lane];
    }
    return total;
}

static void* work(void* argument) {
    const size_t thread = (size_t)argument, part = num_bytes / num_threads / 4096 * 4096;
    const uint64_t* data = (const uint64_t*)(buffer + thread * part);
    double start = 0;
    const double first = now();
    do {
        for (int way = 0; way < 2; ++way) {
            pthread_barrier_wait(&barrier);
            if (thread == 0) {
                start = now();
            }
            const uint64_t total = way ? sum_streams(data, part / 8) : sum(data, part / 8);
            __atomic_fetch_add(&sink, total, __ATOMIC_RELAXED);
            pthread_barrier_wait(&barrier);
            if (thread == 0) {
                rates[way][passes] = part * num_threads / (now() - start) / 1e9;
            }
        }
        if (thread == 0) {
            ++passes;
            more = passes < MAX_PASSES && now() - first < wanted_seconds;
        }
        pthread_barrier_wait(&barrier);
    } while (more);
    return NULL;
}

static int ascending(const void* a, const void* b) {
    return (*(const double*)a > *(const double*)b) - (*(const double*)a < *(const double*)b);
}

static double median(double* values, int count) {
    qsort(values, count, sizeof *values, ascending);
    return count ? values[count / 2] : 0;
}

static int has_huge_pages(const char* begin) {
    FILE* maps = fopen("/proc/self/smaps", "r");
    char line[512];
    int inside = 0;
    unsigned long low = 0, high = 0, kilobytes = 0;
    while (maps && fgets(line, sizeof line, maps)) {
        if (sscanf(line, "%lx-%lx ", &low, &high) == 2 && strchr(line, '-') < strchr(line, ' ')) {
            inside = low <= (unsigned long)begin && (unsigned long)begin < high;
        } else if (inside && sscanf(line, "AnonHugePages: %lu kB", &kilobytes) == 1) {
            break;
        }
    }
    if (maps) {
        fclose(maps);
    }
    return kilobytes * 1024.0 > 0.9 * num_bytes;
}

static void measure(const char* name, int advice) {
    const size_t size = num_bytes + HUGE_PAGE;
    char* memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        perror("read_bandwidth: mmap");
        exit(1);
    }
    char* aligned = (char*)(((uintptr_t)memory + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
    const int refused = madvise(aligned, num_bytes, advice);
    memset(aligned, 1, num_bytes);
    passes = 0;
    if (advice == MADV_NOHUGEPAGE || (!refused && has_huge_pages(aligned))) {
        buffer = aligned;
        pthread_t threads[MAX_THREADS];
        pthread_barrier_init(&barrier, NULL, num_threads);
        for (size_t i = 0; i < (size_t)num_threads; ++i) {
            pthread_create(&threads[i], NULL, work, (void*)i);
        }
        for (int i = 0; i < num_threads; ++i) {
            pthread_join(threads[i], NULL);
        }
    }
    munmap(memory, size);
    printf("%s plain %.3f\n%s streams %.3f\n", name, median(rates[0], passes), name, median(rates[1], passes));
}

int main(int count, char** arguments) {
    if (count != 4 || atoi(arguments[1]) < 1 || atoi(arguments[1]) > MAX_THREADS || atof(arguments[2]) < HUGE_PAGE) {
        fprintf(stderr, "read_bandwidth THREADS BYTES SECONDS; 1 to %d threads, at least %d bytes\n", MAX_THREADS,
                HUGE_PAGE);
        return 2;
    }
    num_threads = atoi(arguments[1]);
    num_bytes = (size_t)atof(arguments[2]) / HUGE_PAGE * HUGE_PAGE;
    wanted_seconds = atof(arguments[3]);
    measure("small", MADV_NOHUGEPAGE);
    measure("huge", MADV_HUGEPAGE);
    return 0;
}
