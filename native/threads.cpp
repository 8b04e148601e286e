#include "threads.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>

namespace narrows {
namespace {

// OpenMP's threads spin for a while after each region, waiting for the next: a second pool would fight them for the
// cores. So the one that PyTorch brought is borrowed; GCC's and LLVM's OpenMP both have this entry. Where there is
// none, the caller does all the work.
using Region = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

Region region() {
    static const auto found = reinterpret_cast<Region>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    return found;
}

struct Job {
    const std::function<void(std::int64_t, std::int64_t)>& work;
    std::int64_t count, part;
    std::atomic<std::int64_t> next{0};

    void run() {
        for (;;) {
            const std::int64_t begin = next.fetch_add(part, std::memory_order_relaxed);
            if (begin >= count) return;
            work(begin, std::min(begin + part, count));
        }
    }
};

}  // namespace

void parallel(std::int64_t count, std::int64_t part, const std::function<void(std::int64_t, std::int64_t)>& work) {
    if (count <= 0) return;
    Job job{work, count, std::max<std::int64_t>(part, 1)};
    if (count <= job.part || region() == nullptr) {
        job.run();
        return;
    }
    region()([](void* data) { static_cast<Job*>(data)->run(); }, &job, 0, 0);
}

}  // namespace narrows
