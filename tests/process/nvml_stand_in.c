/* A stand-in for libnvidia-ml.so.1: two devices; the file named by FAKE_NVML says who holds what, a line each:
   device pid bytes.  Whenever it is asked it makes a file beside that.  Layout and error codes are NVML's. */
#include <stdio.h>
#include <stdlib.h>

struct process { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; };

int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)(unsigned long)(index + 1); return 0; }

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, struct process *found) {
    unsigned room = *count, here, pid;
    unsigned long long used;
    FILE *file = getenv("FAKE_NVML") ? fopen(getenv("FAKE_NVML"), "r") : NULL;
    char asked[4096];
    *count = 0;
    if (!file) return 0;
    snprintf(asked, sizeof asked, "%s.asked", getenv("FAKE_NVML"));
    fclose(fopen(asked, "w"));
    while (fscanf(file, "%u %u %llu", &here, &pid, &used) == 3)
        if (here + 1 == (unsigned long)device) {
            if (*count < room) found[*count] = (struct process){pid, used, ~0u, ~0u};
            ++*count;
        }
    fclose(file);
    return *count > room ? 7 : 0;
}
