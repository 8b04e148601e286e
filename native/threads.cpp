#include "threads.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>

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

    std::exception_ptr failure;
    std::once_flag failed;

    // Nothing may be thrown out of a parallel region: what is thrown is kept, and thrown behind it.
    void run() noexcept {
        for (;;) {
            const std::int64_t begin = next.fetch_add(part, std::memory_order_relaxed);
            if (begin >= count) return;
            try {
                work(begin, std::min(begin + part, count));
            } catch (...) {
                std::call_once(failed, [this] { failure = std::current_exception(); });
            }
        }
    }
};

}  // namespace

void parallel(std::int64_t count, std::int64_t part, const std::function<void(std::int64_t, std::int64_t)>& work) {
    if (count <= 0) return;
    Job job{work, count, std::max<std::int64_t>(part, 1)};
    if (count <= job.part || region() == nullptr) {
        job.run();
    } else {
        region()([](void* data) { static_cast<Job*>(data)->run(); }, &job, 0, 0);
    }
    if (job.failure) std::rethrow_exception(job.failure);
}

}  // namespace narrows
