#include "team.hpp"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <unistd.h>
#endif
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

namespace narrows {
namespace {

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

#if defined(__linux__)
static_assert(sizeof(std::atomic<std::uint32_t>) == 4);

void sleep_while(std::atomic<std::uint32_t>& word, std::uint32_t value) {
    syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void wake_all(std::atomic<std::uint32_t>& word) {
    syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAKE_PRIVATE, MOST_THREADS, nullptr, nullptr, 0);
}
#else
void sleep_while(std::atomic<std::uint32_t>&, std::uint32_t) { std::this_thread::yield(); }
void wake_all(std::atomic<std::uint32_t>&) {}
#endif

// At a barrier others are mostly a few microseconds away: then to sleep costs more than to look again and again. But where
// two of us share a core, which the system may leave so for seconds, every look keeps the core from who is waited for. So
// there are few looks after waits that were too long for them, and more and more after others.
constexpr int MOST_SPINS = 10'000, LEAST_SPINS = 100;

// Between two steps of a decode the interpreter works for some hundred microseconds.
constexpr auto SPIN_BETWEEN = std::chrono::microseconds(300);

}  // namespace

class Pool {
   public:
    void run(int threads, const std::function<void(Team&)>& work) {
        std::lock_guard<std::mutex> turn(turn_);
        threads = make(std::clamp(threads, 1, MOST_THREADS) - 1) + 1;
        arrived_.store(0, std::memory_order_relaxed);
        counter_.store(0, std::memory_order_relaxed);
        members_.store(threads, std::memory_order_relaxed);
        if (threads > 1) {
            work_ = &work;
            {
                std::lock_guard<std::mutex> lock(mutex_);
                const std::uint64_t number = job_.load(std::memory_order_relaxed) / MEMBERS + 1;
                job_.store(number * MEMBERS + threads, std::memory_order_release);
            }
            if (sleeping_.load(std::memory_order_acquire)) wake_.notify_all();
        }
        Team team(*this, 0, threads);
        work(team);
        if (threads > 1) team.barrier();  // nobody still reads `work`
    }

    void meet() {
        const std::uint32_t before = generation_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members_.load(std::memory_order_relaxed)) {
            counter_.store(0, std::memory_order_relaxed);
            arrived_.store(0, std::memory_order_relaxed);
            // In one order with who goes to sleep: either it sees the next generation, or it is seen and woken.
            generation_.fetch_add(1, std::memory_order_seq_cst);
            if (asleep_.load(std::memory_order_seq_cst)) wake_all(generation_);
            return;
        }
        const int most = spins_.load(std::memory_order_relaxed);
        for (int spins = 0; spins < most; ++spins) {
            if (generation_.load(std::memory_order_acquire) != before) {
                if (most < MOST_SPINS) spins_.store(most + most / 16 + 1, std::memory_order_relaxed);
                return;
            }
            pause();
        }
        spins_.store(std::max(LEAST_SPINS, most / 2), std::memory_order_relaxed);
        asleep_.fetch_add(1, std::memory_order_seq_cst);
        while (generation_.load(std::memory_order_seq_cst) == before) sleep_while(generation_, before);
        asleep_.fetch_sub(1, std::memory_order_relaxed);
    }

    std::int64_t next() { return counter_.fetch_add(1, std::memory_order_relaxed); }

   private:
    // Sees to it that there are so many threads beside the caller; fewer where the system gives no more -> how many.
    int make(int workers) {
        // A thread joins with the job that is current when it is made, and waits for the next.
        try {
            for (; workers_ < workers; ++workers_)
                std::thread(&Pool::serve, this, workers_ + 1, job_.load(std::memory_order_acquire)).detach();
        } catch (const std::system_error&) {
        }
        return std::min(workers, workers_);
    }

    void serve(int index, std::uint64_t seen) {
        for (;;) {
            seen = wait(seen);
            // Who is not needed for a job only takes note of it.
            const int members = static_cast<int>(seen % MEMBERS);
            if (index >= members) continue;
            Team team(*this, index, members);
            (*work_)(team);
            team.barrier();
        }
    }

    std::uint64_t wait(std::uint64_t seen) {
        const auto until = std::chrono::steady_clock::now() + SPIN_BETWEEN;
        for (;;) {
            for (int spins = 0; spins < 64; ++spins) {
                const std::uint64_t job = job_.load(std::memory_order_acquire);
                if (job != seen) return job;
                pause();
            }
            if (std::chrono::steady_clock::now() >= until) break;
        }
        std::unique_lock<std::mutex> lock(mutex_);
        sleeping_.fetch_add(1, std::memory_order_acq_rel);
        wake_.wait(lock, [&] { return job_.load(std::memory_order_acquire) != seen; });
        sleeping_.fetch_sub(1, std::memory_order_acq_rel);
        return job_.load(std::memory_order_acquire);
    }

    std::mutex turn_, mutex_;
    std::condition_variable wake_;
    // The number of the job and, in its last digits, of its members: a thread that comes late to a job without it must
    // not read the next one's.
    static constexpr std::uint64_t MEMBERS = 1024;
    std::atomic<std::uint64_t> job_{0};
    std::atomic<std::uint32_t> generation_{0};
    std::atomic<int> arrived_{0}, sleeping_{0}, asleep_{0}, members_{1}, spins_{MOST_SPINS};
    std::atomic<std::int64_t> counter_{0};
    const std::function<void(Team&)>* work_ = nullptr;
    int workers_ = 0;
};

namespace {

// Never destroyed: its threads may still wait when the process ends. A forked child has none of them, and locks in
// whatever state: it gets a pool of its own.
Pool* pool = nullptr;
std::once_flag made;

Pool& the_pool() {
    std::call_once(made, [] {
        pool = new Pool;
#if defined(__unix__) || defined(__APPLE__)
        pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
#endif
    });
    return *pool;
}

}  // namespace

void Team::barrier() {
    if (count_ > 1) pool_.meet();
}

std::int64_t Team::next() { return pool_.next(); }

void together(int threads, const std::function<void(Team&)>& work) { the_pool().run(threads, work); }

}  // namespace narrows
