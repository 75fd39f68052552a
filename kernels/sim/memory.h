// Memory for tensors, with a page beside it that nobody may touch.
#pragma once

#include "scheduler.h"

namespace sim {

// Maps a page with this, a forbidden page, the pages of the buffer, a forbidden page. The buffer
// ends where its pages end, or (by the seed) begins where they begin; the rest of its pages is
// poisoned and looked at when it is freed.
struct Allocation {
    uint64_t bytes, pages;
    bool at_start;
    unsigned char poison;
};

inline unsigned char* first_page(const void* memory) {
    return reinterpret_cast<unsigned char*>(reinterpret_cast<uintptr_t>(memory) / PAGE * PAGE);
}

}  // namespace sim

extern "C" {

__attribute__((used)) inline void* roclip_sim_alloc(uint64_t bytes) {
    using namespace sim;
    if (bytes == 0) bytes = 1;
    const uint64_t pages = (bytes + PAGE - 1) / PAGE;
    void* map = mmap(nullptr, (pages + 3) * PAGE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return nullptr;
    const auto start = static_cast<unsigned char*>(map);
    unsigned char* const body = start + 2 * PAGE;
    mprotect(start + PAGE, PAGE, PROT_NONE);
    mprotect(body + pages * PAGE, PAGE, PROT_NONE);
    const uint64_t seed = machine().seed;
    const Allocation what = {bytes, pages, (seed & 2) != 0, machine().poison()};
    memcpy(start, &what, sizeof what);
    memset(body, what.poison, pages * PAGE);
    return what.at_start ? body : body + pages * PAGE - bytes;
}

__attribute__((used)) inline int32_t roclip_sim_free(void* memory) {
    using namespace sim;
    if (!memory) return 0;
    unsigned char* const body = first_page(memory);
    unsigned char* const start = body - 2 * PAGE;
    Allocation what;
    memcpy(&what, start, sizeof what);
    const uint64_t rest = what.pages * PAGE - what.bytes;
    const unsigned char* const beside = what.at_start ? body + what.bytes : body;
    int32_t written = 0;
    for (uint64_t i = 0; i < rest; ++i) written |= beside[i] != what.poison;
    if (written) {
        snprintf(machine().error, sizeof machine().error, "wrote %s a buffer of %llu bytes",
                 what.at_start ? "past the end of" : "before the start of",
                 static_cast<unsigned long long>(what.bytes));
    }
    munmap(start, (what.pages + 3) * PAGE);
    return written;
}
}
